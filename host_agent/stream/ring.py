"""The ring's file, read with ordinary reads.

Not mapped: mapped pages would count as this process's memory, and a file that is cut short would
end the process instead of raising. A read costs one copy, which a batch needs anyway, so that what
was checked is exactly what is compressed and sealed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from host_agent.stream.errors import RingChanged, RingDamaged
from host_agent.wire import crc
from host_agent.wire.errors import WireError
from host_agent.wire.record import RECORD, RING_ENTRY, Records
from host_agent.wire.ring import HEADER_BYTES, RingHeader

#: CRC-32C of any bytes followed by their own CRC-32C, little-endian: the same for all of them.
_RESIDUE = 0x48674BC7
_ENTRY = RING_ENTRY.itemsize
_USAGE = struct.Struct("<QQQQ")
_USAGE_OFFSET = 128
_GENERATION_OFFSET = 16


@dataclass(frozen=True)
class RingUsage:
    """Records and payload bytes that are not given back, and how many there may be."""

    records: int
    records_capacity: int
    bytes: int
    bytes_capacity: int


class RingFile:
    """An open ring of one generation. Owns the descriptor. Used by one thread at a time."""

    def __init__(self, descriptor: int, generation: bytes) -> None:
        self._descriptor = descriptor
        try:
            self.header = RingHeader.parse(self._read(HEADER_BYTES, 0))
        except WireError as error:
            raise RingDamaged(error.message, hint="The tap must make a new ring.") from None
        if self.header.generation != generation:
            raise RingChanged("The ring's file is of another generation than the tap says.")

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def check_current(self) -> None:
        """RingChanged if the file became another generation's, which happens in place.

        To be asked after reading: what was read before the answer is of this generation.
        """
        if self._read(16, _GENERATION_OFFSET) != self.header.generation:
            raise RingChanged("The tap began a new generation in this ring.")

    def payload_head(self) -> int:
        """Payload bytes that were ever recorded, unused ends of the area included.

        As the tap last wrote it down: good enough to see how far behind a reader is.
        """
        return int.from_bytes(self._read(8, _USAGE_OFFSET + 8), "little")

    def usage(self) -> RingUsage:
        """How full the ring is, as the tap last wrote it down. For people, not for decisions."""
        fields = _USAGE.unpack(self._read(_USAGE.size, _USAGE_OFFSET))
        head, payload_head, freed, payload_freed = fields
        return RingUsage(
            records=max(0, head - freed),
            records_capacity=self.header.index_capacity,
            bytes=max(0, payload_head - payload_freed),
            bytes_capacity=self.header.payload_capacity,
        )

    def entries(self, first: int, last: int) -> Records:
        """A checked copy of the entries `first` to `last`; RingDamaged if one is torn or stale."""
        capacity = self.header.index_capacity
        count = last - first + 1
        if not 1 <= first <= last or count > capacity:
            raise RingDamaged(f"Positions {first} to {last} do not fit the ring.")
        begin = first % capacity
        head = min(count, capacity - begin)
        base = self.header.index_offset
        raw = self._read(head * _ENTRY, base + begin * _ENTRY)
        if head < count:
            raw += self._read((count - head) * _ENTRY, base)
        if google_crc32c.value(raw) != _crc_of_valid(count):
            raise RingDamaged(f"An entry of the ring from {first} on does not match its checksum.")
        entries: Records = np.frombuffer(raw, RING_ENTRY)
        expected = np.arange(first, last + 1, dtype=np.uint64)
        laps = (expected // np.uint64(capacity)).astype(np.uint32)
        if (entries["seq"] != expected).any() or (entries["lap"] != laps).any():
            raise RingDamaged(f"The ring's entries from {first} on are not of this lap.")
        return entries

    def payload(self, entries: Records) -> bytes:
        """The payloads of consecutive entries one after another, checked.

        Raises RingDamaged and names the record if a payload does not match its checksum.
        """
        carries = entries["payload_length"] > 0
        rows = entries if carries.all() else entries[carries]
        lengths = np.ascontiguousarray(rows["payload_length"])
        crcs = np.ascontiguousarray(rows["crc"])
        runs = [
            self._read(length, self._place(start, length))
            for start, length in _runs(rows["payload_pos"], lengths, self.header.payload_capacity)
        ]
        data = runs[0] if len(runs) == 1 else b"".join(runs)
        if google_crc32c.value(data) != crc.span_crc(crcs, lengths):
            row = crc.first_bad(data, crcs, lengths)
            seq = int(rows[row or 0]["seq"])
            raise RingDamaged(f"The payload of record {seq} does not match its checksum.")
        return data

    def _place(self, start: int, length: int) -> int:
        capacity = self.header.payload_capacity
        at = start % capacity
        if not 0 < length <= capacity - at:
            raise RingDamaged("A payload of the ring crosses the end of its area.")
        return self.header.payload_offset + at

    def _read(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise RingDamaged(f"The ring cannot be read: {error.strerror}.") from None
        if len(data) != length:
            raise RingDamaged("The ring's file is shorter than its header says.")
        return data


def plain_records(entries: Records) -> Records:
    """The RECORD rows of ring entries, contiguous."""
    rows = entries.view(np.uint8).reshape(-1, _ENTRY)[:, : RECORD.itemsize]
    return np.ascontiguousarray(rows).view(RECORD)[:, 0]


@lru_cache(maxsize=4096)
def _crc_of_valid(count: int) -> int:
    """CRC-32C of `count` entries that each end with their own correct checksum."""
    if count == 1:
        return _RESIDUE
    half = count // 2
    left = np.array([_crc_of_valid(half)], np.uint32)
    right = count - half
    shifted = crc.shift(left, np.array([right * _ENTRY], np.uint64))
    return int(shifted[0]) ^ _crc_of_valid(right)


def _runs(positions: NDArray[Any], lengths: NDArray[Any], capacity: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of each stretch of payloads that lie one after another in the file."""
    if not len(positions):
        return []
    ends = positions + lengths
    # One that ends exactly where the area does is followed by one at the area's beginning.
    is_new = (positions[1:] != ends[:-1]) | (positions[1:] % np.uint64(capacity) == 0)
    firsts = np.concatenate([[0], np.flatnonzero(is_new) + 1])
    lasts = np.concatenate([firsts[1:], [len(positions)]]) - 1
    starts, stops = positions[firsts].tolist(), ends[lasts].tolist()
    return [(start, stop - start) for start, stop in zip(starts, stops, strict=True)]
