"""The ring as the agent reads it: laps, wraps, and every kind of damage."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from host_agent.stream.batch import FrameLimits, count_for_frame, markers_of, state_after
from host_agent.stream.errors import RingChanged, RingDamaged
from host_agent.stream.prepare import Preparer, hash_at
from host_agent.stream.ring import RingFile, plain_records
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity
from host_agent.wire.record import Flag, Op, State, check_records
from host_agent.wire.seal import FrameSealer
from tests.stream.fake_tap import FakeRing, Item


def small_ring() -> FakeRing:
    return FakeRing(b"g" * 16, 64, 64 * 1024, bytes(16))


@contextmanager
def opened(ring: FakeRing) -> Iterator[RingFile]:
    file = RingFile(os.dup(ring.descriptor), ring.generation)
    try:
        yield file
    finally:
        file.close()


def test_records_and_payloads_over_many_laps() -> None:
    ring, rng = small_ring(), random.Random(1)
    kept: dict[int, bytes] = {}
    with opened(ring) as file:
        for number in range(1000):
            data = rng.randbytes(512 * rng.randint(1, 8))
            while not ring.has_room(len(data)) or len(kept) > 20:
                oldest = min(kept)
                del kept[oldest]
                ring.free(oldest)
                ring.anchor = ring.freed
            kept[ring.append(Item(Op.WRITE, 0, 0, len(data), data), number)] = data
            first = min(kept)
            entries = file.entries(first, ring.head)
            check_records(plain_records(entries), first)
            assert file.payload(entries) == b"".join(kept.values())


@pytest.mark.invariant("I10")
def test_every_flipped_bit_of_an_entry_is_found() -> None:
    ring = small_ring()
    for _ in range(5):
        ring.append(Item(Op.WRITE, 0, 0, 512, b"d" * 512), 1)
    at = ring.index_at + 3 * 64
    with opened(ring) as file:
        file.entries(1, 5)
        for bit in range(64 * 8):
            byte = os.pread(ring.descriptor, 1, at + bit // 8)
            os.pwrite(ring.descriptor, bytes([byte[0] ^ 1 << bit % 8]), at + bit // 8)
            with pytest.raises(RingDamaged):
                file.entries(1, 5)
            os.pwrite(ring.descriptor, byte, at + bit // 8)
        file.entries(1, 5)


def test_an_entry_of_the_lap_before_is_not_taken() -> None:
    ring = small_ring()
    for _ in range(70):
        ring.free(ring.head)
        ring.append(Item(Op.FLUSH, 0), 1)
    with opened(ring) as file:
        file.entries(7, 70)
        with pytest.raises(RingDamaged, match="lap"):
            file.entries(6, 8)
        with pytest.raises(RingDamaged):
            file.entries(69, 71)


@pytest.mark.invariant("I10")
def test_a_changed_payload_is_found_and_named() -> None:
    ring = small_ring()
    for _ in range(4):
        ring.append(Item(Op.WRITE, 0, 0, 512, b"d" * 512), 1)
    os.pwrite(ring.descriptor, b"X", ring.payload_at + 512 + 17)
    with opened(ring) as file, pytest.raises(RingDamaged, match="record 2"):
        file.payload(file.entries(1, 4))


def test_a_ring_that_was_cut_short_raises_and_does_not_kill() -> None:
    ring = small_ring()
    ring.append(Item(Op.WRITE, 0, 0, 512, b"d" * 512), 1)
    with opened(ring) as file:
        entries = file.entries(1, 1)
        os.ftruncate(ring.descriptor, ring.payload_at + 100)
        with pytest.raises(RingDamaged, match="shorter"):
            file.payload(entries)


def test_a_ring_of_another_generation_is_not_opened() -> None:
    ring = small_ring()
    with pytest.raises(RingChanged):
        RingFile(ring.descriptor, b"h" * 16)
    os.pwrite(ring.descriptor, b"\xff", 40)
    with pytest.raises(RingDamaged):
        RingFile(ring.descriptor, ring.generation)


def test_the_hash_continues_from_any_anchor() -> None:
    ring = FakeRing(b"g" * 16, 16384, 1 << 20, bytes(16))
    for _ in range(10_000):
        ring.append(Item(Op.FLUSH, 0), 1)
    with opened(ring) as file:
        whole = RecordHash()
        whole.update(plain_records(file.entries(1, 8192)))
        anchor, anchor_hash = whole.anchor, whole.anchor_hash
        whole.update(plain_records(file.entries(8193, 9000)))
        assert hash_at(file, anchor, anchor_hash, 9000).digest() == whole.digest()
        assert hash_at(file, 0, bytes(32), 9000).digest() == whole.digest()


def records_of(*items: Item) -> tuple[RingFile, FakeRing]:
    ring = FakeRing(b"g" * 16, 1024, 16 << 20, bytes(16))
    for item in items:
        ring.append(item, 1)
    return RingFile(os.dup(ring.descriptor), ring.generation), ring


def test_a_frame_ends_at_its_limits() -> None:
    data = b"d" * 4096
    file, ring = records_of(*[Item(Op.WRITE, 0, 0, 4096, data) for _ in range(20)])
    records = plain_records(file.entries(1, ring.head))
    assert count_for_frame(records, FrameLimits(plain=10 * 4096)) == 10
    assert count_for_frame(records, FrameLimits(plain=10 * 4096 + 4095)) == 10
    assert count_for_frame(records, FrameLimits(plain=1)) == 1, "one record fits always"
    assert count_for_frame(records, FrameLimits(records=7)) == 7
    assert count_for_frame(records, FrameLimits()) == 20
    file.close()


def test_a_frame_ends_between_requests_if_it_can() -> None:
    more = Flag.MORE
    piece = Item(Op.WRITE, 0, 0, 512, b"d" * 512, flags=more)
    last = Item(Op.WRITE, 0, 0, 512, b"d" * 512, flags=Flag.TAIL)
    file, ring = records_of(last, piece, piece, last, piece, piece, piece, last)
    records = plain_records(file.entries(1, ring.head))
    assert count_for_frame(records, FrameLimits(records=6)) == 4
    assert count_for_frame(records, FrameLimits(records=3)) == 1
    assert count_for_frame(records[4:], FrameLimits(records=2)) == 2, "larger than a frame"
    file.close()


def mark(number: int) -> Item:
    body = f'{{"checkpoint":"{number:032x}","kind":"crash","tag":null,"scope":"stream"}}'
    return Item(Op.MARK, data=body.encode())


def test_markers_are_told_and_bounded() -> None:
    items = [mark(n) for n in range(1, 80)]
    file, ring = records_of(Item(Op.WRITE, 0, 0, 512, b"d" * 512), *items)
    entries = file.entries(1, ring.head)
    records = plain_records(entries)
    count = count_for_frame(records, FrameLimits())
    assert count == 65
    found = markers_of(records[:count], file.payload(entries[:count]))
    assert [(m.seq, int.from_bytes(m.checkpoint, "big")) for m in found] == [
        (n + 1, n) for n in range(1, 65)
    ]
    file.close()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"checkpoint":"zz","scope":"stream"}',
        b"\xff\xfe",
        b'{"checkpoint":3}',
    ],
)
def test_a_marker_with_a_senseless_body_is_damage(body: bytes) -> None:
    file, ring = records_of(Item(Op.MARK, data=body))
    entries = file.entries(1, ring.head)
    with pytest.raises(RingDamaged):
        markers_of(plain_records(entries), file.payload(entries))
    file.close()


def test_state_after_follows_begin_and_end() -> None:
    flush, begin, end = Item(Op.FLUSH, 0), Item(Op.BEGIN, data=b"{}"), Item(Op.END, data=b"{}")
    file, _ = records_of(flush, begin, flush, end, flush, begin)
    for last, state in ((1, None), (2, 3), (3, 3), (4, 1), (5, 1), (6, 3)):
        records = plain_records(file.entries(1, last))
        for before in (State.RECORDING, State.SYNCING):
            assert state_after(records, before) == (before if state is None else state)
    file.close()


@pytest.mark.invariant("I10")
def test_a_ring_that_began_anew_in_place_is_noticed_before_anything_is_sealed() -> None:
    """A tap that starts again reuses the file: valid entries, but of another generation."""
    ring = FakeRing(b"g" * 16, 64, 64 * 1024, bytes(16))
    for _ in range(5):
        ring.append(Item(Op.FLUSH, 0), 1)
    with opened(ring) as file:
        sealer = FrameSealer(b"k" * 32, Identity("t", "g", "h"), ring.generation, b"s" * 32)
        preparer = Preparer(file, sealer, RecordHash(), State.SYNCING)
        again = FakeRing(b"h" * 16, 64, 64 * 1024, b"g" * 16)
        for _ in range(5):
            again.append(Item(Op.TRIM, 0, 0, 512), 1)
        content = os.pread(again.descriptor, 1 << 20, 0)
        os.pwrite(ring.descriptor, content, 0)
        file.entries(1, 5)  # by themselves they look right
        with pytest.raises(RingChanged):
            preparer.prepare(5, FrameLimits())
        os.close(again.descriptor)
