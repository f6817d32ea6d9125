"""The spool: what was made durable comes back, in order, and nothing else does."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host_agent.stream import spoolfile
from host_agent.stream.batch import FrameLimits
from host_agent.stream.errors import RingDamaged, SpoolFailed, SpoolFull
from host_agent.stream.ports import DataKey
from host_agent.stream.prepare import Preparer
from host_agent.stream.ring import RingFile, plain_records
from host_agent.stream.spool import Spool
from host_agent.stream.spoolfile import SPOOL_BYTES_MIN, SpoolFile
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity
from host_agent.wire.record import Op, State
from host_agent.wire.seal import FrameSealer
from tests.stream.fake_tap import FakeRing, Item

IDENTITY = Identity("acme", "shop", "hv-01")
KEY = DataKey(b"k" * 32, b"{}")
GENERATION = b"g" * 16

pytestmark = pytest.mark.invariant("I2", "I4")


class Randomness:
    """Other bytes at each call."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def fraction(self) -> float:
        return self._rng.random()


@dataclass
class Filled:
    """A ring with records, and what each position holds."""

    ring: RingFile
    payloads: list[bytes]
    hashes: list[bytes]

    @property
    def head(self) -> int:
        return len(self.payloads)


@pytest.fixture
def filled() -> Iterator[Filled]:
    """6,000 records with up to 8 KiB each."""
    rng = random.Random(2)
    made = FakeRing(GENERATION, 8192, 32 << 20, bytes(16))
    payloads = []
    for at in range(6000):
        data = rng.randbytes(512 * rng.randrange(1, 16))
        made.append(Item(Op.WRITE, 0, 512 * at, len(data), data), 1_000 + at)
        payloads.append(data)
    ring = RingFile(os.dup(made.descriptor), GENERATION)
    os.close(made.descriptor)
    running, hashes = RecordHash(), [bytes(32)]
    for seq in range(1, 6001):
        running.update(plain_records(ring.entries(seq, seq)))
        hashes.append(running.digest())
    yield Filled(ring, payloads, hashes)
    ring.close()


def open_spool(path: Path, generation: bytes = GENERATION, seed: int = 1) -> Spool:
    random_source = Randomness(seed)
    file = SpoolFile(path, SPOOL_BYTES_MIN, generation, random_source.bytes)
    return Spool(file, IDENTITY, KEY, random_source)


def hash_until(filled: Filled, position: int) -> RecordHash:
    running = RecordHash()
    if position:
        running.update(plain_records(filled.ring.entries(1, position)))
    return running


def drained(spool: Spool, first: int, last: int, bounds: FrameLimits | None = None) -> list[bytes]:
    """The payloads of the positions, taken as a connection does."""
    found: list[bytes] = []
    while first <= last:
        records, payload = spool.take(first, bounds or FrameLimits())
        assert int(records[0]["seq"]) == first
        at = 0
        for length in records["payload_length"].tolist():
            found.append(payload[at : at + length])
            at += length
        assert at == len(payload)
        first = int(records[-1]["seq"]) + 1
    return found


def test_what_is_moved_comes_back_after_a_restart(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "s" / "shop.spool"
    spool = open_spool(path)
    running = hash_until(filled, 700)
    for head in (2000, 5000):
        while running.position < head:
            running = spool.move(filled.ring, head, running, 1 << 20)
    assert (spool.first, spool.last, running.digest()) == (701, 5000, filled.hashes[5000])
    for number in range(2):
        assert drained(spool, 701, 5000) == filled.payloads[700:5000]
        assert drained(spool, 3333, 5000, FrameLimits(plain=9000)) == filled.payloads[3332:5000]
        for position in (700, 701, 1500, 4095, 4096, 4097, 4999, 5000):
            assert spool.hash_at(position).digest() == filled.hashes[position]
        with pytest.raises(RingDamaged):
            spool.take(5001, FrameLimits())
        with pytest.raises(RingDamaged):
            spool.hash_at(650)
        spool.close()
        spool = open_spool(path, seed=2 + number)
    # It goes on behind what it has.
    running = spool.move(filled.ring, 6000, spool.hash_at(5000), 64 << 20)
    assert drained(spool, 4000, spool.last) == filled.payloads[3999 : spool.last]
    spool.close()


def test_room_is_given_back_and_used_again(filled: Filled, tmp_path: Path) -> None:
    """Many laps; at each the hash is known at every position that may be asked for."""
    spool = open_spool(tmp_path / "shop.spool")
    rng = random.Random(3)
    for lap in range(4):
        running, stored = RecordHash(), 0
        while stored < filled.head:
            while running.position < filled.head:
                try:
                    running = spool.move(filled.ring, filled.head, running, 1 << 20)
                except SpoolFull:
                    break
            stored = min(running.position, stored + rng.randrange(1, 900))
            spool.drop_stored(stored)
            if stored < spool.last:
                assert spool.hash_at(stored).digest() == filled.hashes[stored], lap
                assert drained(spool, stored + 1, stored + 1)[0] == filled.payloads[stored]
            if rng.random() < 0.1:
                spool.close()
                spool = open_spool(tmp_path / "shop.spool", seed=rng.randrange(1 << 30))
        assert (spool.first, spool.last, spool.used_bytes) == (0, 0, 0)
    spool.close()


def test_another_generation_finds_nothing(filled: Filled, tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "shop.spool")
    spool.move(filled.ring, 100, RecordHash(), 1 << 30)
    spool.close()
    spool = open_spool(tmp_path / "shop.spool", b"h" * 16)
    assert spool.last == 0
    spool.close()
    assert open_spool(tmp_path / "shop.spool").last == 0


@pytest.mark.parametrize("step", range(12))
def test_a_torn_write_ends_what_comes_back(filled: Filled, tmp_path: Path, step: int) -> None:
    """Cut or changed at any place: a prefix comes back, never anything else."""
    path = tmp_path / "shop.spool"
    spool = open_spool(path)
    running = spool.move(filled.ring, 1000, RecordHash(), 1 << 30)
    whole = spool.used_bytes
    running = spool.move(filled.ring, 2000, running, 1 << 30)
    used = spool.used_bytes
    spool.close()
    rng = random.Random(step)
    at = 8192 + whole + rng.randrange(used - whole)
    with path.open("r+b") as file:
        file.seek(at)
        if step % 2:
            file.write(bytes(8192 + used - at))
        else:
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x10]))
    spool = open_spool(path)
    assert 1000 <= spool.last <= 2000
    assert drained(spool, 1, spool.last) == filled.payloads[: spool.last]
    spool.close()


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
def test_a_failed_sync_taints_it_for_the_run(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Never tried again and believed; what was durable before is still read."""
    spool = open_spool(tmp_path / "shop.spool")
    running = spool.move(filled.ring, 500, RecordHash(), 1 << 30)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(errno.EIO, "no")

        patch.setattr(os, call, refuse)
        with pytest.raises(SpoolFailed):
            spool.move(filled.ring, 900, running, 1 << 30)
    assert not spool.is_usable
    with pytest.raises(SpoolFailed, match="in this run"):
        spool.move(filled.ring, 900, running, 1 << 30)
    assert spool.last == 500
    assert drained(spool, 1, 500) == filled.payloads[:500]
    spool.close()


def test_a_full_one_takes_nothing_and_keeps_what_it_has(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoolfile, "SPOOL_BYTES_MIN", 8 << 20)
    random_source = Randomness(1)
    file = SpoolFile(tmp_path / "shop.spool", 8 << 20, GENERATION, random_source.bytes)
    spool = Spool(file, IDENTITY, KEY, random_source)
    running = RecordHash()
    with pytest.raises(SpoolFull):
        while running.position < filled.head:
            running = spool.move(filled.ring, filled.head, running, 1 << 20)
    assert spool.is_usable
    assert 0 < spool.last == running.position < filled.head
    assert drained(spool, 1, spool.last) == filled.payloads[: spool.last]
    spool.close()
    spool = open_spool(tmp_path / "shop.spool")
    assert drained(spool, 1, spool.last) == filled.payloads[: spool.last]
    spool.close()


def test_nothing_in_it_is_plain(tmp_path: Path) -> None:
    secret = b"a secret that nobody may read..." * 16
    made = FakeRing(GENERATION, 8192, 1 << 20, bytes(16))
    for at in range(20):
        made.append(Item(Op.WRITE, 0, 4096 * at, len(secret), secret), 5 + at)
    ring = RingFile(made.descriptor, GENERATION)
    spool = open_spool(tmp_path / "shop.spool")
    spool.move(ring, 20, RecordHash(), 1 << 30)
    spool.close()
    ring.close()
    data = (tmp_path / "shop.spool").read_bytes()
    assert b"secret" not in data
    assert (tmp_path / "shop.spool").stat().st_mode & 0o777 == 0o600


def test_what_a_line_took_from_the_spool_is_no_backlog(filled: Filled, tmp_path: Path) -> None:
    """Else a sync would wait for ever for a line that has nothing left to send."""
    sealer = FrameSealer(KEY.key, IDENTITY, GENERATION, b"s" * 32)
    preparer = Preparer(filled.ring, sealer, RecordHash(), State.RECORDING)
    preparer.prepare(200, FrameLimits())
    first = preparer.next_seq
    assert preparer.backlog_bytes(filled.head) > 8 << 20
    preparer.spool = open_spool(tmp_path / "s" / "shop.spool")
    running = hash_until(filled, first - 1)
    while running.position < filled.head:
        running = preparer.spool.move(filled.ring, filled.head, running, 8 << 20)
    while preparer.next_seq <= filled.head:
        assert preparer.backlog_bytes(filled.head) > 0
        preparer.prepare(filled.head, FrameLimits())
    assert preparer.spool.last == filled.head
    assert preparer.backlog_bytes(filled.head) == 0
    preparer.spool.close()
