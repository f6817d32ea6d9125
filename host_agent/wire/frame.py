"""Frames: the clear header that all may read, and the index part as columns. FORMAT.md 4."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from host_agent.wire import limits
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.planes import from_planes, to_planes
from host_agent.wire.record import RECORD, SEQ_LIMIT, Records, State, check_records

MAGIC = b"HFFR"
VERSION = 1
CODEC_ZSTD = 1
FIXED_BYTES = 256
MARKER_BYTES = 40
INDEX_ROW_BYTES = 40
TAG_BYTES = 16

HAS_BEGIN, HAS_END, ENDS_INSIDE_REQUEST = 1, 2, 4
SCOPE_STREAM, SCOPE_GROUP, SCOPE_COMMIT = 1, 2, 3
KIND_CRASH, KIND_APPLICATION, KIND_TAGGED = 1, 2, 3

_FIXED = struct.Struct("<4sBBHBBBBI16s32s32sQQQQQ32sIIIIQH58sI")
_MARKER = struct.Struct("<16sQQBB6s")
assert _FIXED.size == FIXED_BYTES
assert _MARKER.size == MARKER_BYTES


@dataclass(frozen=True)
class Marker:
    """A checkpoint's place in the stream, readable without a key. `time` in nanoseconds UTC."""

    checkpoint: bytes
    seq: int
    time: int
    scope: int
    kind: int


@dataclass(frozen=True)
class FrameHeader:
    """The clear header. Lengths in bytes, times in nanoseconds UTC."""

    state: int
    flags: int
    records: int
    generation: bytes
    salt: bytes
    commitment: bytes
    counter: int
    first_seq: int
    last_seq: int
    time_first: int
    time_last: int
    record_hash: bytes
    index_sealed: int
    index_plain: int
    payload_sealed: int
    payload_plain: int
    disk_bytes: int
    markers: tuple[Marker, ...] = ()

    @property
    def length(self) -> int:
        """Bytes of the packed header."""
        return FIXED_BYTES + MARKER_BYTES * len(self.markers)

    @property
    def parts_length(self) -> int:
        """Bytes of both sealed parts."""
        return self.index_sealed + self.payload_sealed

    def pack(self) -> bytes:
        """The header's bytes; WireError if a field is out of bounds."""
        check_header(self)
        try:
            markers = b"".join(
                _MARKER.pack(m.checkpoint, m.seq, m.time, m.scope, m.kind, bytes(6))
                for m in self.markers
            )
            fixed = self._pack_fixed(0)
        except struct.error as error:
            raise WireError(f"A field of the frame's header is out of bounds: {error}.") from None
        return self._pack_fixed(crc32c(fixed + markers)) + markers

    def _pack_fixed(self, crc: int) -> bytes:
        return _FIXED.pack(
            MAGIC, VERSION, 0, self.length, self.state, self.flags, CODEC_ZSTD, 0, self.records,
            self.generation, self.salt, self.commitment, self.counter, self.first_seq,
            self.last_seq, self.time_first, self.time_last, self.record_hash, self.index_sealed,
            self.index_plain, self.payload_sealed, self.payload_plain, self.disk_bytes,
            len(self.markers), bytes(58), crc,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> FrameHeader:
        """Read and check the header at the start of `data`."""
        length = header_length(data)
        if len(data) < length:
            raise WireError("The frame's header is cut off.")
        head = bytes(data[:length])
        fields = _FIXED.unpack_from(head)
        *_, crc = fields
        if crc32c(head[:252] + bytes(4) + head[256:]) != crc:
            raise ChecksumMismatch("The frame's header does not match its checksum.")
        minor, codec, reserved, spare = fields[2], fields[6], fields[7], fields[24]
        if codec != CODEC_ZSTD:
            raise WireError(f"The frame's parts are coded with the unknown codec {codec}.")
        if minor == 0 and (reserved or any(spare)):
            raise WireError("The frame's header uses reserved fields.")
        count = fields[23]
        if length != FIXED_BYTES + MARKER_BYTES * count:
            raise WireError("The frame's header has another length than its markers.")
        markers = tuple(
            _unpack_marker(head, FIXED_BYTES + MARKER_BYTES * i, minor) for i in range(count)
        )
        header = cls(*fields[4:6], *fields[8:23], markers)  # type: ignore[call-arg]
        check_header(header)
        return header


def _unpack_marker(head: bytes, at: int, minor: int) -> Marker:
    checkpoint, seq, time, scope, kind, spare = _MARKER.unpack_from(head, at)
    if minor == 0 and any(spare):
        raise WireError("A marker uses reserved fields.")
    return Marker(checkpoint, seq, time, scope, kind)


def header_length(data: bytes | memoryview) -> int:
    """How long the header is that starts with these bytes (8 are enough)."""
    if len(data) < 8 or bytes(data[:4]) != MAGIC:
        raise WireError("This is not a frame.")
    version, length = data[4], int.from_bytes(data[6:8], "little")
    if version != VERSION:
        raise WireError(
            f"The frame is of version {version}; this software reads version {VERSION}.",
            hint="Update this software.",
        )
    if not FIXED_BYTES <= length <= FIXED_BYTES + MARKER_BYTES * limits.FRAME_MARKERS_MAX:
        raise LimitExceeded(f"A frame's header of {length} bytes is out of bounds.")
    return length


def check_header(header: FrameHeader) -> None:
    """Raise WireError unless the fields agree with each other and with the limits."""
    h = header
    lengths = (len(h.generation), len(h.salt), len(h.commitment), len(h.record_hash))
    if lengths != (16, 32, 32, 32):
        raise WireError("A field of the frame's header has the wrong length.")
    if not 1 <= h.records <= limits.FRAME_RECORDS_MAX:
        raise LimitExceeded(f"A frame of {h.records} records is out of bounds.")
    if h.first_seq < 1 or h.last_seq != h.first_seq + h.records - 1 or h.last_seq >= SEQ_LIMIT:
        raise WireError("The frame's sequences do not match its count of records.")
    if h.state not in (State.RECORDING, State.SYNCING) or h.flags & ~7:
        raise WireError("The frame states an unknown state.")
    if h.time_last < h.time_first:
        raise WireError("The frame's times run back.")
    _check_parts(h)
    _check_markers(h)


def _check_parts(h: FrameHeader) -> None:
    if h.index_plain != h.records * INDEX_ROW_BYTES or h.index_sealed <= TAG_BYTES:
        raise WireError("The frame's index has another length than its records.")
    sealed = max(h.index_sealed, h.payload_sealed)
    if sealed > limits.PART_SEALED_BYTES_MAX or h.payload_plain > limits.FRAME_PLAIN_BYTES_MAX:
        raise LimitExceeded("A part of the frame is larger than allowed.")
    if (h.payload_sealed > TAG_BYTES) != (h.payload_plain > 0) or 0 < h.payload_sealed <= TAG_BYTES:
        raise WireError("The frame's payload lengths do not agree.")


def _check_markers(h: FrameHeader) -> None:
    if len(h.markers) > limits.FRAME_MARKERS_MAX:
        raise LimitExceeded(f"A frame of {len(h.markers)} markers is out of bounds.")
    before = h.first_seq - 1
    for marker in h.markers:
        if not before < marker.seq <= h.last_seq:
            raise WireError("A marker does not lie in its frame, or not in order.")
        known = marker.scope in (1, 2, 3) and marker.kind in (1, 2, 3)
        timely = h.time_first <= marker.time <= h.time_last
        if not known or not timely or len(marker.checkpoint) != 16:
            raise WireError(f"The marker at sequence {marker.seq} is malformed.")
        before = marker.seq


_DELTA_COLUMNS = ("time", "offset", "aux")
_PLAIN_COLUMNS = ("length", "crc", "payload_length", "disk", "op", "flags")


def encode_index(records: Records) -> bytes:
    """The index part before compression: columns as byte planes, 40 bytes a record."""
    parts = []
    for name in _DELTA_COLUMNS:
        column = records[name].astype(np.uint64)
        column[1:] -= records[name][:-1]
        parts.append(to_planes(column))
    parts += [to_planes(np.ascontiguousarray(records[n])) for n in _PLAIN_COLUMNS]
    return b"".join(parts)


def decode_index(plain: bytes | memoryview, count: int, first_seq: int) -> Records:
    """Records from an index part; WireError if it is not the canonical form of valid records."""
    return decode_indexes([plain], [count], first_seq)


def decode_indexes(
    plains: Sequence[bytes | memoryview], counts: Sequence[int], first_seq: int
) -> Records:
    """Records of frames that follow one another, from their index parts: as quick for many small
    ones as for a large one. WireError, of which one frame alone tells better what is wrong."""
    total = sum(counts)
    for plain, count in zip(plains, counts, strict=True):
        if not 1 <= count <= limits.FRAME_RECORDS_MAX or len(plain) != count * INDEX_ROW_BYTES:
            raise WireError("The index part has another length than its records.")
    if not 1 <= first_seq < SEQ_LIMIT - total:
        raise WireError(f"{first_seq} cannot be the first sequence of a frame.")
    number = np.array(counts, np.int64)
    planes = _joined_planes(plains, number)
    records = np.empty(total, RECORD)
    records["seq"] = np.arange(first_seq, first_seq + total, dtype=np.uint64)
    row = 0
    for name in (*_DELTA_COLUMNS, *_PLAIN_COLUMNS):
        kind = RECORD[name]
        column = from_planes(planes[row : row + kind.itemsize], kind)
        records[name] = _summed(column, number) if name in _DELTA_COLUMNS else column
        row += kind.itemsize
    check_records(records, first_seq)
    return records


def _joined_planes(
    plains: Sequence[bytes | memoryview], number: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The frames' byte planes side by side: row p has byte p of all records, in their order."""
    planes = np.empty((INDEX_ROW_BYTES, int(number.sum())), np.uint8)
    at = 0
    for plain, count in zip(plains, number.tolist(), strict=True):
        own = np.frombuffer(plain, np.uint8).reshape(INDEX_ROW_BYTES, count)
        planes[:, at : at + count] = own
        at += count
    return planes


def _summed(steps: NDArray[np.uint64], number: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The values of a column whose differences within each frame are `steps`."""
    column = np.cumsum(steps, dtype=np.uint64)
    if len(number) > 1:
        starts = np.cumsum(number) - number
        before = np.concatenate([np.zeros(1, np.uint64), column])[starts]
        column -= np.repeat(before, number)
    return column
