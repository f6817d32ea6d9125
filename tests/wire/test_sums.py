"""Checksums of batches and the record hash."""

from __future__ import annotations

import random

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire.crc import crc32c, crc32c_extend, first_bad, repeated_crc, shift, span_crc
from host_agent.wire.errors import WireError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.limits import HASH_GRID
from host_agent.wire.record import RECORD, RING_ENTRY, Op, Records
from tests.model import sectors


def test_known_values() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_one(head: bytes, tail: bytes) -> None:
    assert crc32c(head) == crc32c(memoryview(head)) == crc32c(bytearray(head))
    assert crc32c(head) == sectors.crc32c(head)
    assert crc32c_extend(crc32c(head), tail) == sectors.crc32c(head + tail)


@given(st.lists(st.binary(max_size=5000), max_size=30))
@settings(max_examples=100, deadline=None)
def test_span_is_the_concatenation(pieces: list[bytes]) -> None:
    crcs = np.array([crc32c(piece) for piece in pieces], np.uint32)
    lengths = np.array([len(piece) for piece in pieces], np.uint32)
    whole = b"".join(pieces)
    assert span_crc(crcs, lengths) == crc32c(whole)
    assert first_bad(whole, crcs, lengths) is None


def test_span_of_many_large_pieces() -> None:
    rng = random.Random(1)
    sizes = [rng.choice([0, 1, 512, 4096, 1 << 20]) for _ in range(40)]
    whole = rng.randbytes(sum(sizes))
    crcs, at = [], 0
    for size in sizes:
        crcs.append(crc32c(whole[at : at + size]))
        at += size
    table = np.array(crcs, np.uint32), np.array(sizes, np.uint32)
    assert span_crc(*table) == crc32c(whole)
    spoiled = bytearray(whole)
    spoiled[sum(sizes[:7]) + (sizes[7] > 0)] ^= 1
    culprit = first_bad(bytes(spoiled), *table)
    assert span_crc(*table) != crc32c(spoiled)
    assert culprit is not None
    assert sizes[culprit] > 0


def test_span_finds_a_piece_that_moved() -> None:
    pieces = [bytes([n]) * 512 for n in range(8)]
    crcs = np.array([crc32c(piece) for piece in pieces], np.uint32)
    lengths = np.full(8, 512, np.uint32)
    pieces[2], pieces[3] = pieces[3], pieces[2]
    assert span_crc(crcs, lengths) != crc32c(b"".join(pieces))
    assert first_bad(b"".join(pieces), crcs, lengths) == 2


def test_shift_by_more_than_memory_holds() -> None:
    # Shifting is additive in the length, so lengths that cannot be allocated are checked by halves.
    crcs = np.array([0x12345678, 0xFFFFFFFF], np.uint32)
    far = np.array([(1 << 40) + 12345] * 2, np.uint64)
    near = np.array([1 << 39, (1 << 39) + 12345], np.uint64)
    assert (shift(shift(crcs, near), far - near) == shift(crcs, far)).all()


@given(st.binary(min_size=1, max_size=80), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_repeated_is_the_repetition(piece: bytes, count: int) -> None:
    assert repeated_crc(crc32c(piece), len(piece), count) == crc32c(piece * count)


def _records(count: int, first: int = 1) -> Records:
    records = np.zeros(count, RECORD)
    records["seq"] = np.arange(first, first + count)
    records["time"] = records["seq"] * 7
    records["op"] = Op.FLUSH
    return records


def _by_definition(position: int) -> bytes:
    """H(position) exactly as FORMAT.md writes it."""
    grid = position - position % HASH_GRID
    value = bytes(32)
    for base in range(0, grid, HASH_GRID):
        value = blake3(value + _records(HASH_GRID, base + 1).tobytes()).digest()
    if position == grid:
        return value
    return blake3(value + _records(position - grid, grid + 1).tobytes()).digest()


@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 4097, 8191, 8192, 10_000])
def test_record_hash_is_the_definition(position: int) -> None:
    running = RecordHash()
    running.update(_records(position))
    assert running.digest() == _by_definition(position)
    assert running.position == position
    assert running.anchor == position - position % HASH_GRID


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_record_hash_does_not_depend_on_batches(sizes: list[int]) -> None:
    total = sum(sizes)
    whole = RecordHash()
    whole.update(_records(total))
    pieces = RecordHash()
    at = 1
    for size in sizes:
        pieces.update(_records(size, at))
        at += size
    assert pieces.digest() == whole.digest()
    assert (pieces.anchor, pieces.anchor_hash) == (whole.anchor, whole.anchor_hash)


@pytest.mark.parametrize("anchor", [0, 4096, 8192])
def test_record_hash_goes_on_from_any_anchor(anchor: int) -> None:
    before = RecordHash()
    before.update(_records(anchor))
    later = RecordHash(before.anchor, before.anchor_hash)
    later.update(_records(9000 - anchor, anchor + 1))
    assert later.digest() == _by_definition(9000)


def test_record_hash_copies_go_apart() -> None:
    one = RecordHash()
    one.update(_records(5000))
    two = one.copy()
    two.update(_records(10, 5001))
    assert one.digest() == _by_definition(5000)
    assert two.digest() == _by_definition(5010)
    assert two.position == 5010


def test_record_hash_of_ring_entries_is_that_of_their_records() -> None:
    entries = np.zeros(50, RING_ENTRY)
    for name in RECORD.names or ():
        entries[name] = _records(50)[name]
    entries["payload_pos"] = 99
    running = RecordHash()
    running.update(entries)
    assert running.digest() == _by_definition(50)


@pytest.mark.parametrize("field", ["time", "offset", "aux", "length", "crc", "disk", "op", "flags"])
def test_record_hash_covers_every_field(field: str) -> None:
    changed = _records(10)
    changed[field][4] ^= 1
    running = RecordHash()
    running.update(changed)
    assert running.digest() != _by_definition(10)


def test_record_hash_refuses_gaps_and_false_anchors() -> None:
    running = RecordHash()
    with pytest.raises(WireError, match="does not follow"):
        running.update(_records(3, 2))
    for anchor, value in ((1, bytes(32)), (-4096, bytes(32)), (0, bytes(31))):
        with pytest.raises(WireError, match="anchor"):
            RecordHash(anchor, value)
