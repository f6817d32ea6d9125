"""Segments and the chain that they form."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest

from host_agent.wire import limits
from host_agent.wire.errors import ChainBroken, ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.pieces import Pieces
from host_agent.wire.record import Op
from host_agent.wire.seal import FrameOpener, FrameSealer, SealedFrame
from host_agent.wire.segment import (
    KIND_DATA,
    KIND_EPOCH,
    TRAILER_BYTES,
    SegmentInfo,
    build_segment,
    check_follows,
    parse_tail,
    parse_trailer,
    verify_segment,
)
from tests.model.sectors import crc32c
from tests.wire.samples import DATA_KEY, GENERATION, IDENTITY, SALT, START, Batch, seal, typical

WRITER, NEXT_WRITER = b"w" * 16, b"v" * 16
EMPTY = SegmentInfo(
    kind=KIND_EPOCH,
    place=1,
    epoch=1,
    previous=bytes(32),
    identity_hash=IDENTITY.hash,
    generation=bytes(16),
    writer=WRITER,
    first_seq=1,
    last_seq=0,
    time_newest=0,
    committed_at=START,
    record_hash=bytes(32),
    state=0,
)


def frames(count: int = 3) -> list[SealedFrame]:
    """Consecutive frames of one connection."""
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    running = RecordHash()
    made = [seal(typical(), sealer, running)]
    for _ in range(count - 1):
        before = made[-1].header
        batch = Batch(before.time_last)
        for _ in range(5):
            batch.add(Op.WRITE, after=before.last_seq)
        made.append(seal(batch, sealer, running))
    return made


def following(before: SegmentInfo, parts: list[SealedFrame], **change: Any) -> SegmentInfo:
    """What the trailer of the next data segment says."""
    last = parts[-1].header
    info = replace(
        before,
        kind=KIND_DATA,
        place=before.place + 1,
        previous=before.hash,
        generation=last.generation,
        first_seq=parts[0].header.first_seq,
        last_seq=last.last_seq,
        time_newest=last.time_last,
        committed_at=before.committed_at + 1,
        record_hash=last.record_hash,
        state=last.state,
    )
    return replace(info, **change)


def claiming(before: SegmentInfo, **change: Any) -> SegmentInfo:
    """What the trailer of the next writer's epoch segment says."""
    info = replace(
        before,
        kind=KIND_EPOCH,
        place=before.place + 1,
        epoch=before.epoch + 1,
        previous=before.hash,
        writer=NEXT_WRITER,
        first_seq=before.last_seq + 1,
    )
    return replace(info, **change)


PARTS = frames()
EPOCH_DATA, EPOCH = build_segment(EMPTY, [])
SEGMENT_DATA, SEGMENT = build_segment(following(EPOCH, PARTS), PARTS)


def test_a_chain_verifies() -> None:
    assert verify_segment(EPOCH_DATA) == EPOCH
    assert verify_segment(SEGMENT_DATA) == SEGMENT
    check_follows(None, EPOCH)
    check_follows(EPOCH, SEGMENT)
    claim_data, claim = build_segment(claiming(SEGMENT), [])
    assert verify_segment(claim_data) == claim
    check_follows(SEGMENT, claim)


def test_a_segment_lies_where_the_format_says() -> None:
    data = SEGMENT_DATA
    assert data[:16] == b"HFSEG\0\0\x01" + struct.pack("<II", 2, 0)
    payloads = b"".join(part.payload for part in PARTS)
    assert data[16 : 16 + len(payloads)] == payloads
    trailer = data[-320:]
    assert trailer[:8] == b"HFEND\0\0\x01"
    assert struct.unpack_from("<IIQQ", trailer, 8) == (1, 2, 2, 1)
    assert trailer[32:64] == EPOCH.hash
    assert trailer[64:96] == IDENTITY.hash
    assert trailer[96:128] == GENERATION + WRITER
    assert struct.unpack_from("<QQQQ", trailer, 128) == (1, 27, SEGMENT.time_newest, START + 1)
    assert trailer[160:192] == PARTS[-1].header.record_hash
    tail = data[16 + len(payloads) :]
    assert struct.unpack_from("<IIQB", trailer, 192) == (3, len(tail), len(data), 1)
    assert struct.unpack_from("<I", trailer, 316)[0] == crc32c(trailer[:316])


def test_the_tail_gives_every_frame() -> None:
    info, refs = parse_tail(SEGMENT_DATA[-SEGMENT.tail_length :])
    assert info == SEGMENT
    reader = FrameOpener(DATA_KEY, IDENTITY)
    for part, ref in zip(PARTS, refs, strict=True):
        assert ref.header == part.header
        assert ref.header_bytes == part.header_bytes
        assert bytes(ref.index) == part.index
        payload = SEGMENT_DATA[ref.payload_offset : ref.payload_offset + ref.payload_length]
        assert payload == part.payload
        assert len(reader.open_index(ref.header, ref.header_bytes, ref.index)) == ref.header.records
    assert parse_tail(SEGMENT_DATA)[0] == SEGMENT
    assert parse_tail(EPOCH_DATA) == (EPOCH, [])


def test_building_again_gives_the_same_bytes() -> None:
    info, refs = parse_tail(SEGMENT_DATA)
    again = [
        SealedFrame(
            ref.header,
            ref.header_bytes,
            bytes(ref.index),
            SEGMENT_DATA[ref.payload_offset : ref.payload_offset + ref.payload_length],
        )
        for ref in refs
    ]
    assert build_segment(info, again) == (SEGMENT_DATA, SEGMENT)


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("data", [EPOCH_DATA, SEGMENT_DATA], ids=["epoch", "data"])
def test_any_changed_byte_is_found(data: bytes) -> None:
    rng = random.Random(3)
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << rng.randrange(8)
        with pytest.raises(WireError):
            verify_segment(bytes(spoiled))


@pytest.mark.invariant("I10")
def test_any_truncation_or_addition_is_found() -> None:
    for cut in range(0, len(SEGMENT_DATA), 7):
        with pytest.raises(WireError):
            verify_segment(SEGMENT_DATA[:cut])
        with pytest.raises(WireError):
            verify_segment(SEGMENT_DATA[cut + 1 :])
    for bad in (SEGMENT_DATA + b"\0", b"\0" + SEGMENT_DATA, EPOCH_DATA + SEGMENT_DATA):
        with pytest.raises(WireError):
            verify_segment(bad)


def _forged(data: bytes, at: int, value: bytes) -> bytes:
    """A trailer field changed and the trailer's checksum made right again."""
    trailer = bytearray(data[-TRAILER_BYTES:])
    trailer[at : at + len(value)] = value
    trailer[316:] = crc32c(bytes(trailer[:316])).to_bytes(4, "little")
    return data[:-TRAILER_BYTES] + bytes(trailer)


@pytest.mark.invariant("I10")
def test_a_forged_trailer_is_found_by_the_hash() -> None:
    for at in range(316):
        byte = bytes([SEGMENT_DATA[-TRAILER_BYTES + at] ^ 0x10])
        with pytest.raises(WireError):
            verify_segment(_forged(SEGMENT_DATA, at, byte))


FORGED: list[tuple[str, int, bytes]] = [
    ("version", 8, struct.pack("<I", 2)),
    ("kind", 12, struct.pack("<I", 3)),
    ("kind-epoch", 12, struct.pack("<I", 1)),
    ("place-zero", 16, bytes(8)),
    ("epoch-zero", 24, bytes(8)),
    ("no-generation", 96, bytes(16)),
    ("first-sequence-zero", 128, bytes(8)),
    ("last-before-first", 136, bytes(8)),
    ("no-frames", 192, bytes(4)),
    ("more-frames", 192, struct.pack("<I", 4)),
    ("many-frames", 192, struct.pack("<I", 0xFFFFFFFF)),
    ("tail-too-short", 196, struct.pack("<I", 319)),
    ("tail-too-long", 196, struct.pack("<I", 0xFFFFFFFF)),
    ("object-length", 200, struct.pack("<Q", len(SEGMENT_DATA) + 1)),
    ("object-too-large", 200, struct.pack("<Q", limits.SEGMENT_BYTES_MAX + 1)),
    ("state-none", 208, b"\0"),
    ("state-dirty", 208, b"\2"),
    ("reserved", 209, b"\1"),
    ("reserved-last", 283, b"\1"),
    ("record-hash", 160, bytes(32)),
    ("time", 144, bytes(8)),
]


@pytest.mark.parametrize(("at", "value"), [f[1:] for f in FORGED], ids=[f[0] for f in FORGED])
def test_impossible_tails_are_refused_without_the_hash(at: int, value: bytes) -> None:
    with pytest.raises(WireError):
        parse_tail(_forged(SEGMENT_DATA, at, value))


def test_a_damaged_trailer_is_named_as_such() -> None:
    with pytest.raises(ChecksumMismatch, match="trailer"):
        parse_trailer(SEGMENT_DATA[:-1] + b"\0")
    with pytest.raises(WireError, match="version 7") as caught:
        parse_trailer(_forged(SEGMENT_DATA, 8, struct.pack("<I", 7)))
    assert caught.value.hint


def test_a_short_tail_is_refused() -> None:
    with pytest.raises(WireError, match="cut off"):
        parse_tail(SEGMENT_DATA[-SEGMENT.tail_length + 1 :])


def _resigned(**change: Any) -> SealedFrame:
    """The second frame with a clear header that was changed and given a right checksum."""
    header = replace(PARTS[1].header, **change)
    return replace(PARTS[1], header=header, header_bytes=header.pack())


STRAY: dict[str, list[SealedFrame]] = {
    "gap": [PARTS[0], PARTS[2]],
    "twice": [PARTS[0], PARTS[0]],
    "reversed": [PARTS[1], PARTS[0]],
    "other-generation": [PARTS[0], _resigned(generation=bytes(15) + b"x")],
    "older": [PARTS[0], _resigned(time_first=5)],
    "other-lengths": [PARTS[0], _resigned(payload_sealed=PARTS[1].header.payload_sealed + 1)],
}


@pytest.mark.parametrize("case", STRAY)
def test_frames_that_do_not_follow_are_not_built(case: str) -> None:
    with pytest.raises(WireError):
        build_segment(following(EPOCH, STRAY[case]), STRAY[case])


@pytest.mark.parametrize(
    "change",
    [
        {"last_seq": 99},
        {"record_hash": bytes(32)},
        {"time_newest": START},
        {"state": 3},
        {"generation": bytes(16)},
        {"previous": bytes(31)},
        {"writer": b""},
        {"epoch": 0},
        {"epoch": 1 << 64},
        {"place": -1},
        {"kind": 3},
    ],
    ids=str,
)
def test_false_trailers_are_not_built(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        build_segment(following(EPOCH, PARTS, **change), PARTS)


def test_too_large_a_segment_is_not_built() -> None:
    huge = replace(PARTS[0], payload=bytes(limits.SEGMENT_BYTES_MAX))
    with pytest.raises(LimitExceeded):
        build_segment(following(EPOCH, [huge]), [huge])


SUCCESSORS: list[tuple[str, SegmentInfo, SegmentInfo | None]] = [
    ("data-first", replace(SEGMENT, place=1, previous=bytes(32)), None),
    ("not-place-one", replace(EPOCH, place=2), None),
    ("beginning-with-history", replace(EPOCH, previous=b"x" * 32), None),
    ("place-skipped", following(EPOCH, PARTS, place=3), EPOCH),
    ("place-again", following(EPOCH, PARTS, place=1), EPOCH),
    ("other-hash", following(EPOCH, PARTS, previous=bytes(32)), EPOCH),
    ("other-stream", following(EPOCH, PARTS, identity_hash=bytes(32)), EPOCH),
    ("lower-epoch", following(replace(EPOCH, epoch=5), PARTS, epoch=4), replace(EPOCH, epoch=5)),
    ("unclaimed-epoch", following(EPOCH, PARTS, epoch=2), EPOCH),
    ("unclaimed-writer", following(EPOCH, PARTS, writer=NEXT_WRITER), EPOCH),
    ("claim-of-the-same-epoch", claiming(SEGMENT, epoch=1), SEGMENT),
    ("committed-before", following(EPOCH, PARTS, committed_at=START - 1), EPOCH),
    ("claim-elsewhere", claiming(SEGMENT, last_seq=26, first_seq=27), SEGMENT),
    ("claim-of-other-hash", claiming(SEGMENT, record_hash=bytes(32)), SEGMENT),
    ("claim-of-other-state", claiming(SEGMENT, state=3), SEGMENT),
    ("claim-of-other-generation", claiming(SEGMENT, generation=b"z" * 16), SEGMENT),
    ("gap", following(SEGMENT, PARTS, first_seq=29), SEGMENT),
    ("overlap", following(SEGMENT, PARTS, first_seq=27), SEGMENT),
    ("older", following(SEGMENT, PARTS, first_seq=28, time_newest=START), SEGMENT),
    ("new-generation-later", following(SEGMENT, PARTS, generation=b"n" * 16, first_seq=2), SEGMENT),
]


@pytest.mark.invariant("I7", "I10")
@pytest.mark.parametrize(
    ("info", "before"), [case[1:] for case in SUCCESSORS], ids=[case[0] for case in SUCCESSORS]
)
def test_what_does_not_follow_is_refused(info: SegmentInfo, before: SegmentInfo | None) -> None:
    with pytest.raises(ChainBroken) as caught:
        check_follows(before, info)
    assert f"place {info.place}" in caught.value.message
    assert caught.value.hint


def test_what_may_follow() -> None:
    check_follows(SEGMENT, following(SEGMENT, PARTS, first_seq=28, last_seq=40))
    check_follows(SEGMENT, following(SEGMENT, PARTS, generation=b"n" * 16, first_seq=1))
    claim = claiming(SEGMENT, epoch=9)
    check_follows(SEGMENT, claim)
    check_follows(claim, following(claim, PARTS, first_seq=28, last_seq=40))


def test_random_bytes_are_no_segment() -> None:
    rng = random.Random(11)
    for size in (0, 1, 319, 320, 336, 5000):
        for _ in range(20):
            with pytest.raises(WireError):
                parse_tail(rng.randbytes(size))


def test_pieces_are_equal_to_the_same_bytes_in_one() -> None:
    pieces = Pieces([b"ab", memoryview(b"c"), b""])
    assert bytes(pieces) == b"abc"
    assert len(pieces) == 3
    assert pieces == b"abc"
    assert bytearray(b"abc") == pieces
    assert pieces == Pieces([b"abc"])
    assert pieces != b"abd"
    assert pieces != b"ab"
    assert pieces != "abc"
