"""Hash lists: of every block what the journal holds at one place, and nothing of another."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from blake3 import blake3

from host_agent.wire.errors import ChecksumMismatch, HoldfastError, UnsealFailed, WrongKey
from host_agent.wire.hashlist import (
    HASHED,
    ZERO,
    Blocks,
    ListSeal,
    block_key,
    hash_blocks,
    pack_blocks,
    parse_blocks,
    parse_directory,
    parse_part,
)
from host_agent.wire.keys import TenantKey, open_with_tenant
from host_agent.wire.limits import HASH_BLOCK_BYTES as BLOCK
from host_agent.wire.names import Identity, hashes_name, hashes_place, key_name
from host_agent.wire.segment import SegmentInfo
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from workers.journal import hashlist
from workers.journal.errors import NothingToRestore
from workers.journal.hashlist import newest_hashes, write_hashes
from workers.restore.fetch import fetch_all

pytestmark = pytest.mark.invariant("I10")

SIZES = {"root": 5 * BLOCK, "data": 3 * BLOCK + 512}


@dataclass
class Opened:
    """A list as a host opens it: by name, what is known of each block."""

    newest: SegmentInfo
    disks: dict[str, list[bytes | None]]


def open_list(store: MemoryStore, identity: Identity, key: TenantKey, place: int) -> Opened:
    first = parse_part(store.get(hashes_name(identity, place, 0)))
    generation = first.newest.generation
    wrapped = store.get(key_name(identity, generation))
    data_key = open_with_tenant(wrapped, key, identity, generation)
    found: dict[str, list[bytes | None]] = {}
    directory = parse_directory(first.open(identity, data_key))
    for index, disk in enumerate(directory.disks):
        known: list[bytes | None] = [None] * -(-disk.size // BLOCK)
        for begin, number in disk.parts:
            part = parse_part(store.get(hashes_name(identity, place, number)))
            assert part.newest == first.newest
            blocks = parse_blocks(part.open(identity, data_key), index, begin)
            for at, (kind, row) in enumerate(zip(blocks.kinds, blocks.hashes, strict=True)):
                known[begin + at] = row.tobytes() if kind == HASHED else None
        found[disk.name] = known
    return Opened(first.newest, found)


def expected(image: bytes, key: bytes) -> list[bytes | None]:
    """The plain way: a block after another."""
    blocks = [image[at : at + BLOCK] for at in range(0, len(image), BLOCK)]
    return [blake3(b, key=key).digest(length=16) if any(b) else None for b in blocks]


@pytest.fixture
def built() -> JournalBuilder:
    """Two generations, many writes, several segments; consistent at its end."""
    rng = random.Random(8)
    builder = JournalBuilder(MemoryStore(), rng=rng)
    builder.generation(SIZES)
    builder.end()
    for turn in range(60):
        disk = rng.randrange(2)
        at = rng.randrange(0, SIZES["root" if disk == 0 else "data"] - 8192, 512)
        builder.write(disk, at, rng.randbytes(8192))
        if turn == 30:
            builder.generation(SIZES, goes_on=True)
            builder.sync(1, 0, rng.randbytes(4096), 1)
            builder.end()
        if turn % 9 == 0:
            builder.segment()
    builder.write(0, 4 * BLOCK, bytes(BLOCK))
    builder.segment()
    return builder


def make(builder: JournalBuilder) -> hashlist.WrittenHashes:
    return write_hashes(builder.store, builder.identity, builder.tenant_key, fetch_all)


def opened(builder: JournalBuilder, place: int) -> Opened:
    assert isinstance(builder.store, MemoryStore)
    return open_list(builder.store, builder.identity, builder.tenant_key, place)


def key_of(builder: JournalBuilder) -> bytes:
    return block_key(builder._data_key)


@pytest.mark.parametrize("window", [BLOCK, 64 * BLOCK])
@pytest.mark.parametrize("part", [2, 256])
def test_every_block_is_as_the_model_says(
    built: JournalBuilder, monkeypatch: pytest.MonkeyPatch, window: int, part: int
) -> None:
    monkeypatch.setattr(hashlist, "WINDOW_BYTES", window)
    monkeypatch.setattr(hashlist, "HASH_PART_BLOCKS", part)
    written = make(built)
    found = opened(built, written.place)
    for name, disk in built.model.disks.items():
        assert found.disks[name] == expected(disk.image(), key_of(built))
    assert newest_hashes(built.store, built.identity) == written.place
    again = make(built)
    assert (again.there, again.made) == (True, [])


def test_one_other_byte_is_another_hash(built: JournalBuilder) -> None:
    """The control."""
    written = make(built)
    image = bytearray(built.model.disks["root"].image())
    image[2 * BLOCK + 77] ^= 1
    found = opened(built, written.place).disks["root"]
    differ = [n for n, h in enumerate(expected(bytes(image), key_of(built))) if h != found[n]]
    assert differ == [2]


def test_inside_a_sync_the_list_is_of_the_place_before(built: JournalBuilder) -> None:
    before = {name: disk.image() for name, disk in built.model.disks.items()}
    built.begin(SIZES)
    built.write(0, 0, b"x" * 4096)
    built.segment()
    built.write(0, 8192, b"y" * 4096)
    built.segment()
    written = make(built)
    found = opened(built, written.place)
    assert found.newest.state == 1
    for name, image in before.items():
        assert found.disks[name] == expected(image, key_of(built))


def test_a_journal_that_never_was_consistent_has_no_list() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": BLOCK})
    builder.write(0, 0, b"x" * 512)
    builder.segment()
    with pytest.raises(NothingToRestore):
        make(builder)
    assert newest_hashes(builder.store, builder.identity) is None


def test_who_is_ended_makes_the_same_objects_again(
    built: JournalBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts without a directory are no list; the next run completes it."""

    def end(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hashlist, "failpoint", end)
    with pytest.raises(KeyboardInterrupt):
        make(built)
    assert newest_hashes(built.store, built.identity) is None
    monkeypatch.undo()
    written = make(built)
    assert [hashes_place(name) for name in written.made] == [(written.place, 0)]


@pytest.fixture
def seal() -> tuple[ListSeal, SegmentInfo]:
    identity = Identity("acme", "web", "host1")
    info = SegmentInfo(
        2, 7, 1, bytes(32), identity.hash, b"g" * 16, b"w" * 16, 1, 9, 5, 6, bytes(32), 1, 1,
        320 + 256, 1000,
    )  # fmt: skip
    return ListSeal(identity, b"k" * 32, info), info


def test_another_key_stream_or_byte_opens_nothing(seal: tuple[ListSeal, SegmentInfo]) -> None:
    sealer, info = seal
    kinds = np.array([ZERO, HASHED], np.uint8)
    hashes = np.array([[0] * 16, [7] * 16], np.uint8)
    data = sealer.seal(3, pack_blocks(0, Blocks(4, kinds, hashes)))
    assert data == sealer.seal(3, pack_blocks(0, Blocks(4, kinds, hashes)))
    part = parse_part(data)
    assert (part.number, part.newest) == (3, info)
    blocks = parse_blocks(part.open(sealer.identity, b"k" * 32), 0, 4)
    assert (blocks.kinds == kinds).all()
    assert (blocks.hashes == hashes).all()
    with pytest.raises(WrongKey):
        part.open(sealer.identity, b"j" * 32)
    with pytest.raises(HoldfastError, match="another stream"):
        part.open(Identity("acme", "web", "host2"), b"k" * 32)
    with pytest.raises(HoldfastError, match="other blocks"):
        parse_blocks(part.open(sealer.identity, b"k" * 32), 0, 0)
    for at in (14, 200, len(data) - 60, len(data) - 1):
        bent = bytearray(data)
        bent[at] ^= 1
        with pytest.raises(ChecksumMismatch):
            parse_part(bytes(bent))
    bent = bytearray(data[:-32])
    bent[-1] ^= 1
    forged = bytes(bent) + blake3(bytes(bent)).digest()
    with pytest.raises(UnsealFailed):
        parse_part(forged).open(sealer.identity, b"k" * 32)


def test_hashes_of_all_lengths() -> None:
    key = b"k" * 32
    rng = random.Random(3)
    for size in (512, BLOCK - 512, BLOCK, BLOCK + 512, 4 * BLOCK):
        for data in (bytes(size), rng.randbytes(size), bytes(size - 1) + b"\1"):
            kinds, hashes = hash_blocks(memoryview(data), key)
            rows = [h.tobytes() if k else None for k, h in zip(kinds, hashes, strict=True)]
            assert rows == expected(data, key)
