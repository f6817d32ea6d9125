"""The ring as its reader sees it. FORMAT.md section 2. No I/O: it is handed the mapped bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from host_agent.wire.crc import crc32c, repeated_crc
from host_agent.wire.errors import ChecksumMismatch, WireError
from host_agent.wire.record import RING_ENTRY, SEQ_LIMIT, Records

MAGIC = b"HFRING\0\x01"
HEADER_BYTES = 4096
#: Version 2 has an in-flight table, which is the tap's own affair.
_VERSIONS = (1, 2)
_TABLE_SLOT = 16
#: CRC-32C of any bytes followed by their own CRC-32C.
_RESIDUE = 0x48674BC7
_FIXED = struct.Struct("<8sII16sQQQQ16sQQI28s")
assert _FIXED.size == 128


@dataclass(frozen=True)
class RingHeader:
    """The fields that never change while a ring lives. Bytes."""

    generation: bytes
    index_capacity: int
    payload_capacity: int
    index_offset: int
    payload_offset: int
    predecessor: bytes | None
    made_at: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> RingHeader:
        """Read and check; WireError or ChecksumMismatch."""
        head = bytes(data[:128])
        if len(head) < 128 or head[:8] != MAGIC:
            raise WireError("This file is not a ring.")
        _, version, crc, generation, slots, size, index, payload, before, made, *rest = (
            _FIXED.unpack(head)
        )
        if version not in _VERSIONS:
            raise WireError(f"The ring is of version {version}; this software reads up to 2.")
        if crc32c(head[16:128]) != crc:
            raise ChecksumMismatch("The ring's header does not match its checksum.")
        table, table_slots, spare = rest
        if any(spare) or (version == 1 and (table or table_slots)):
            raise WireError("The ring's header uses reserved fields.")
        if not slots or slots & (slots - 1) or not size or size % 4096:
            raise WireError("The ring's capacities are not possible.")
        if version > 1 and (table < HEADER_BYTES or index < table + table_slots * _TABLE_SLOT):
            raise WireError("The ring's in-flight table overlaps another area.")
        if index < HEADER_BYTES or payload < index + slots * RING_ENTRY.itemsize:
            raise WireError("The ring's areas overlap.")
        return cls(generation, slots, size, index, payload, before if any(before) else None, made)

    @property
    def file_bytes(self) -> int:
        """How long the file must be."""
        return self.payload_offset + self.payload_capacity


@lru_cache(maxsize=1024)
def _sound_crc(count: int) -> int:
    return repeated_crc(_RESIDUE, RING_ENTRY.itemsize, count)


class RingView:
    """Records and payloads of a mapped ring. Ask only for what was not given back yet."""

    def __init__(self, data: memoryview) -> None:
        self.header = RingHeader.parse(data)
        if len(data) < self.header.file_bytes:
            raise WireError("The ring's file is shorter than its header says.")
        self._data = data
        self._entries: Records = np.frombuffer(
            data, RING_ENTRY, self.header.index_capacity, self.header.index_offset
        )

    def records(self, first: int, last: int) -> Records:
        """A copy of the entries `first` to `last`; ChecksumMismatch if one is torn or stale."""
        capacity = self.header.index_capacity
        if not 1 <= first <= last < SEQ_LIMIT or last - first >= capacity:
            raise WireError(f"Positions {first} to {last} do not fit the ring.")
        slots = np.arange(first, last + 1, dtype=np.uint64)
        begin, count = first % capacity, last - first + 1
        if begin + count <= capacity:
            entries = self._entries[begin : begin + count].copy()
        else:
            head = self._entries[begin:]
            entries = np.concatenate([head, self._entries[: count - len(head)]])
        laps = (slots // np.uint64(capacity)).astype(np.uint32)
        if (entries["seq"] != slots).any() or (entries["lap"] != laps).any():
            raise ChecksumMismatch(f"The ring's entries from {first} are not of this lap.")
        # A piece and its own checksum after it have one CRC, whatever the piece: one pass tells
        # whether all entries are whole.
        if crc32c(entries.tobytes()) != _sound_crc(count):
            raise ChecksumMismatch(f"An entry of the ring from {first} to {last} is damaged.")
        return entries

    def payload_spans(self, entries: Records) -> list[memoryview]:
        """The payloads of consecutive entries in order, as few contiguous spans as they are."""
        with_bytes: Any = entries[entries["payload_length"] > 0]
        if not len(with_bytes):
            return []
        start = with_bytes["payload_pos"]
        end = start + with_bytes["payload_length"]
        capacity = np.uint64(self.header.payload_capacity)
        # One that fills the area to its very end is followed by one at its beginning.
        breaks = np.flatnonzero((start[1:] != end[:-1]) | (start[1:] % capacity == 0)) + 1
        firsts = np.concatenate([[0], breaks])
        lasts = np.concatenate([breaks, [len(start)]]) - 1
        return [self._span(int(start[a]), int(end[b])) for a, b in zip(firsts, lasts, strict=True)]

    def _span(self, start: int, end: int) -> memoryview:
        capacity = self.header.payload_capacity
        at, length = start % capacity, end - start
        if not 0 < length <= capacity - at:
            raise ChecksumMismatch("A payload of the ring crosses the end of its area.")
        base = self.header.payload_offset + at
        return self._data[base : base + length]
