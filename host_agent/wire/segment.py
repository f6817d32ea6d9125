"""Segments: immutable objects whose place in the chain is their name. FORMAT.md section 5."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from blake3 import blake3

from host_agent.wire import limits
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChainBroken, ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.frame import FIXED_BYTES, FrameHeader
from host_agent.wire.pieces import Pieces
from host_agent.wire.record import SEQ_LIMIT, State

LEAD_MAGIC, TRAILER_MAGIC = b"HFSEG\0\0\x01", b"HFEND\0\0\x01"
KIND_EPOCH, KIND_DATA = 1, 2
LEAD_BYTES, TRAILER_BYTES = 16, 320
_LEAD = struct.Struct("<8sII")
_TRAILER = struct.Struct("<8sIIQQ32s32s16s16sQQQQ32sIIQB67s8s32sI")
_HASH_AT, _CRC_AT = 284, 316
assert _LEAD.size == LEAD_BYTES
assert _TRAILER.size == TRAILER_BYTES


@dataclass(frozen=True)
class SegmentInfo:
    """What a trailer says. Times in nanoseconds UTC, lengths in bytes."""

    kind: int
    place: int
    epoch: int
    previous: bytes
    identity_hash: bytes
    generation: bytes
    writer: bytes
    first_seq: int
    last_seq: int
    time_newest: int
    committed_at: int
    record_hash: bytes
    state: int
    frames: int = 0
    tail_length: int = TRAILER_BYTES
    object_length: int = 0
    hash: bytes = bytes(32)


@dataclass(frozen=True)
class FrameRef:
    """A frame within a segment: header, sealed index, and where its payload lies in the object."""

    header: FrameHeader
    header_bytes: bytes
    index: memoryview
    payload_offset: int
    payload_length: int


class FrameBytes(Protocol):
    """The bytes of a frame, as received or sealed."""

    @property
    def header_bytes(self) -> bytes | memoryview: ...
    @property
    def index(self) -> bytes | memoryview: ...
    @property
    def payload(self) -> bytes | memoryview: ...


def build_segment(info: SegmentInfo, frames: Sequence[FrameBytes]) -> tuple[bytes, SegmentInfo]:
    """The object's bytes, and `info` completed with counts, lengths and hash.

    WireError unless a reader would accept them.
    """
    pieces, info = gather_segment(info, frames)
    return bytes(pieces), info


def gather_segment(info: SegmentInfo, frames: Sequence[FrameBytes]) -> tuple[Pieces, SegmentInfo]:
    """The same, with the frames' bytes where they are."""
    parts: list[bytes | memoryview] = [_LEAD.pack(LEAD_MAGIC, info.kind, 0)]
    parts += [frame.payload for frame in frames]
    tail: list[bytes | memoryview] = [frame.header_bytes for frame in frames]
    tail += [frame.index for frame in frames]
    tail_length = sum(map(len, tail)) + TRAILER_BYTES
    body_length = sum(map(len, parts)) + tail_length - TRAILER_BYTES
    if body_length + TRAILER_BYTES > limits.SEGMENT_BYTES_MAX:
        raise LimitExceeded(f"A segment of {body_length} bytes is larger than allowed.")
    info = replace(
        info,
        frames=len(frames),
        tail_length=tail_length,
        object_length=body_length + TRAILER_BYTES,
        hash=bytes(32),
    )
    digest = blake3(max_threads=1)
    for part in (*parts, *tail, _pack(info, 0)[:_HASH_AT]):
        digest.update(part)
    info = replace(info, hash=digest.digest())
    end = b"".join([*tail, pack_trailer(info)])
    parse_tail(end)  # a segment that nobody could read is never made
    return Pieces([*parts, end]), info


def pack_trailer(info: SegmentInfo) -> bytes:
    """The trailer of a segment whose counts, lengths and hash are known; WireError."""
    trailer = _pack(info, 0)[:_CRC_AT]
    return trailer + crc32c(trailer).to_bytes(4, "little")


def _pack(info: SegmentInfo, crc: int) -> bytes:
    i = info
    hashes = (i.previous, i.identity_hash, i.record_hash, i.hash)
    if any(len(h) != 32 for h in hashes) or len(i.generation) != 16 or len(i.writer) != 16:
        raise WireError("A field of a segment's trailer has the wrong length.")
    try:
        return _pack_trailer(i, crc)
    except struct.error as error:
        raise WireError(f"A field of a segment's trailer is out of bounds: {error}.") from None


def _pack_trailer(i: SegmentInfo, crc: int) -> bytes:
    return _TRAILER.pack(
        TRAILER_MAGIC, 1, i.kind, i.place, i.epoch, i.previous, i.identity_hash, i.generation,
        i.writer, i.first_seq, i.last_seq, i.time_newest, i.committed_at, i.record_hash, i.frames,
        i.tail_length, i.object_length, i.state, bytes(67), bytes(8), i.hash, crc,
    )  # fmt: skip


def parse_trailer(data: bytes | memoryview) -> SegmentInfo:
    """The trailer at the end of `data`; WireError if there is none, ChecksumMismatch if damaged."""
    if len(data) < TRAILER_BYTES:
        raise WireError("The segment is cut off before its trailer.")
    trailer = bytes(data[-TRAILER_BYTES:])
    fields = _TRAILER.unpack(trailer)
    if fields[0] != TRAILER_MAGIC:
        raise WireError("The object does not end in a segment's trailer.")
    if fields[1] != 1:
        raise WireError(
            f"The segment is of version {fields[1]}; this software reads version 1.",
            hint="Update this software.",
        )
    if crc32c(trailer[:_CRC_AT]) != fields[21]:
        raise ChecksumMismatch("The segment's trailer does not match its checksum.")
    if any(fields[18]) or any(fields[19]):
        raise WireError("The segment's trailer uses fields of a newer version.")
    names = ("kind", "place", "epoch", "previous", "identity_hash", "generation", "writer",
             "first_seq", "last_seq", "time_newest", "committed_at", "record_hash")  # fmt: skip
    info = SegmentInfo(
        **dict(zip(names, fields[2:14], strict=True)),
        frames=fields[14],
        tail_length=fields[15],
        object_length=fields[16],
        state=fields[17],
        hash=fields[20],
    )
    _check_info(info)
    return info


def _check_info(info: SegmentInfo) -> None:
    least = TRAILER_BYTES + info.frames * FIXED_BYTES
    if not least <= info.tail_length <= info.object_length - LEAD_BYTES:
        raise WireError("The segment's lengths do not agree.")
    if info.object_length > limits.SEGMENT_BYTES_MAX:
        raise LimitExceeded(f"A segment of {info.object_length} bytes is larger than allowed.")
    if info.kind == KIND_EPOCH:
        empty = info.object_length == LEAD_BYTES + TRAILER_BYTES and not info.frames
        valid = empty and info.first_seq == info.last_seq + 1
    else:
        valid = info.kind == KIND_DATA and info.frames > 0 and 1 <= info.first_seq <= info.last_seq
    if not valid or info.place < 1 or info.epoch < 1 or info.last_seq >= SEQ_LIMIT - 1:
        raise WireError("The segment's trailer contradicts itself.")
    if any(info.generation):
        valid = info.state in (State.RECORDING, State.SYNCING) and info.last_seq > 0
    else:
        carried = (info.state, info.last_seq, info.time_newest, any(info.record_hash))
        valid = carried == (State.NONE, 0, 0, False)
    if not valid:
        raise WireError("The segment's trailer states a state that its generation cannot have.")


def parse_tail(tail: bytes | memoryview) -> tuple[SegmentInfo, list[FrameRef]]:
    """Everything but the payloads from (at least) the tail of a segment."""
    info = parse_trailer(tail)
    if len(tail) < info.tail_length:
        raise WireError("The segment's tail is cut off.")
    view = memoryview(tail)[len(tail) - info.tail_length : len(tail) - TRAILER_BYTES]
    headers: list[tuple[FrameHeader, bytes]] = []
    at = 0
    for _ in range(info.frames):
        header = FrameHeader.unpack(view[at:])
        headers.append((header, bytes(view[at : at + header.length])))
        at += header.length
    frames: list[FrameRef] = []
    payload_at = LEAD_BYTES
    for header, head in headers:
        index = view[at : at + header.index_sealed]
        frames.append(FrameRef(header, head, index, payload_at, header.payload_sealed))
        at += header.index_sealed
        payload_at += header.payload_sealed
    if at != len(view) or payload_at != info.object_length - info.tail_length:
        raise WireError("The segment's frames do not fill it.")
    _check_frames(info, frames)
    return info, frames


def _check_frames(info: SegmentInfo, frames: list[FrameRef]) -> None:
    expected, time = info.first_seq, 0
    for frame in frames:
        follows = frame.header.first_seq == expected and frame.header.time_first >= time
        if not follows or frame.header.generation != info.generation:
            raise WireError(
                f"The frames of the segment at place {info.place} do not follow each other."
            )
        expected, time = frame.header.last_seq + 1, frame.header.time_last
    if frames:
        last = frames[-1].header
        same = (last.last_seq, last.record_hash, last.time_last, last.state)
        if same != (info.last_seq, info.record_hash, info.time_newest, info.state):
            raise WireError(
                f"The trailer of the segment at place {info.place} contradicts its frames."
            )


def verify_segment(data: bytes | memoryview) -> SegmentInfo:
    """Check a whole object against its hash; returns what its trailer says."""
    info = parse_trailer(data)
    if info.object_length != len(data):
        raise WireError("The segment has another length than its trailer says.")
    lead = _LEAD.unpack_from(data)
    if lead != (LEAD_MAGIC, info.kind, 0):
        raise WireError("The segment does not begin as one.")
    hashed = memoryview(data)[: len(data) - TRAILER_BYTES + _HASH_AT]
    if blake3(hashed).digest() != info.hash:
        raise ChecksumMismatch(f"The segment at place {info.place} does not match its hash.")
    return info


def check_follows(before: SegmentInfo | None, info: SegmentInfo) -> None:
    """Raise ChainBroken unless `info` is what may follow `before` (None: the chain's beginning)."""
    wrong = _wrong_beginning(info) if before is None else _wrong_successor(before, info)
    if wrong:
        raise ChainBroken(
            f"The segment at place {info.place} {wrong}.",
            hint="An object of the journal was lost or replaced; what lies before can be restored.",
        )


def _wrong_beginning(info: SegmentInfo) -> str:
    if info.place != 1 or any(info.previous):
        return "is not the beginning of a chain"
    return "" if info.kind == KIND_EPOCH else "comes before any writer claimed the chain"


def _wrong_successor(before: SegmentInfo, info: SegmentInfo) -> str:
    if info.place != before.place + 1:
        return f"does not follow place {before.place}"
    if info.previous != before.hash:
        return "holds another hash of the segment before it"
    if info.identity_hash != before.identity_hash:
        return "belongs to another stream"
    claims = info.kind == KIND_EPOCH
    if info.epoch < before.epoch or (info.epoch == before.epoch) == claims:
        return f"has epoch {info.epoch} after epoch {before.epoch}"
    if not claims and info.writer != before.writer:
        return "was written by one who had not claimed the chain"
    if info.committed_at < before.committed_at:
        return "was committed before the segment that it follows"
    if claims and _carried(info) != _carried(before):
        return "claims the chain at another position than it had"
    if info.generation == before.generation and info.time_newest < before.time_newest:
        return "holds records older than those before it"
    first = before.last_seq + 1 if info.generation == before.generation else 1
    return (
        ""
        if info.first_seq == first
        else f"begins at sequence {info.first_seq} after {before.last_seq}"
    )


def _carried(info: SegmentInfo) -> tuple[object, ...]:
    return info.generation, info.last_seq, info.time_newest, info.record_hash, info.state
