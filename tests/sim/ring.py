"""The ring as the tap's model writes it. FORMAT.md section 2, with plain struct calls."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import google_crc32c

from host_agent.wire.record import NO_DISK, Op, State

HEADER = 4096
#: Kept for BEGIN, END, markers and descriptions.
KEPT_BYTES, KEPT_ENTRIES = 8 * 1024, 8
_ENTRY = struct.Struct("<QQQQIIIHBBQI")


@dataclass(frozen=True)
class Shape:
    """Sizes of a tap. Bytes; `slots` is a power of two above the record hash's grid."""

    disks: dict[str, int]
    slots: int
    ring_bytes: int
    grid: int


@dataclass(frozen=True)
class Item:
    """What to record."""

    op: Op
    disk: int = NO_DISK
    offset: int = 0
    length: int = 0
    data: bytes = b""
    aux: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Left:
    """What a killed tap's ring says: how the stream was, and what was in flight."""

    state: State
    last_good: int
    in_flight: tuple[tuple[int, int, int], ...]


class RingFull(Exception):
    """There is no room for a record."""


class Ring:
    """A ring file as FORMAT.md section 2 has it, in memory; it outlives the tap, not the host."""

    def __init__(self, generation: bytes, predecessor: bytes, shape: Shape) -> None:
        self.shape = shape
        self.descriptor = os.memfd_create("sim-ring")
        self.payload_at = HEADER + shape.slots * 64
        os.ftruncate(self.descriptor, self.payload_at + shape.ring_bytes)
        self.restart(generation, predecessor)

    def restart(self, generation: bytes, predecessor: bytes) -> None:
        """Another generation in the same file."""
        self.generation, self.predecessor = generation, predecessor
        self.head = self.freed = self.payload_head = self.payload_freed = 0
        self.anchor, self.anchor_hash = 0, bytes(32)
        self.newest_time = 0
        self.left: Left | None = None
        self._ends: dict[int, int] = {}
        shape = self.shape
        fixed = struct.pack(
            "<16sQQQQ16sQ40s",
            generation,
            shape.slots,
            shape.ring_bytes,
            HEADER,
            self.payload_at,
            predecessor,
            1,
            bytes(40),
        )
        head = b"HFRING\0\x01" + struct.pack("<II", 1, google_crc32c.value(fixed)) + fixed
        os.pwrite(self.descriptor, head + bytes(80), 0)

    def has_room(self, length: int, entries: int = 1, kept: bool = False) -> bool:
        """Whether records of so many payload bytes fit, beside what is kept."""
        spare, spare_entries = (0, 0) if kept else (KEPT_BYTES, KEPT_ENTRIES)
        used = self._start(length) + length + spare - self.payload_freed
        entries += spare_entries + self.head - self.anchor
        return used <= self.shape.ring_bytes and entries < self.shape.slots

    @property
    def used(self) -> int:
        return self.payload_head - self.payload_freed

    def _start(self, length: int) -> int:
        at = self.payload_head % self.shape.ring_bytes
        past = at + length > self.shape.ring_bytes
        return self.payload_head + (self.shape.ring_bytes - at if past else 0)

    def append(self, item: Item, at: int, kept: bool = False) -> int:
        """Record it at the time `at`, ns; its sequence. RingFull."""
        data = item.data
        if not self.has_room(len(data), kept=kept):
            raise RingFull
        start = self._start(len(data))
        if data:
            os.pwrite(self.descriptor, data, self.payload_at + start % self.shape.ring_bytes)
        self.payload_head = start + len(data)
        self.head += 1
        self.newest_time = at
        row = _ENTRY.pack(
            self.head,
            at,
            item.offset,
            item.aux,
            item.length,
            google_crc32c.value(data) if data else 0,
            len(data),
            item.disk,
            int(item.op),
            item.flags,
            start,
            self.head // self.shape.slots & 0xFFFFFFFF,
        )
        row += google_crc32c.value(row).to_bytes(4, "little")
        os.pwrite(self.descriptor, row, HEADER + self.head % self.shape.slots * 64)
        self._ends[self.head] = self.payload_head
        self._show()
        return self.head

    def _show(self) -> None:
        at = (self.head, self.payload_head, self.freed, self.payload_freed)
        os.pwrite(self.descriptor, struct.pack("<QQQQ", *at), 128)

    def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None:
        """Give back all up to `seq`."""
        assert anchor % self.shape.grid == 0, "an anchor off the grid"
        assert anchor <= seq <= self.head, "freed what was never recorded"
        if seq > self.freed:
            self.payload_freed = self._ends[seq]
            for old in range(self.freed + 1, seq + 1):
                del self._ends[old]
            self.freed = seq
            self.anchor, self.anchor_hash = anchor, anchor_hash
            self._show()

    def copy(self) -> Ring:
        """The same bytes in a file of their own."""
        twin = Ring(self.generation, self.predecessor, self.shape)
        whole = os.pread(self.descriptor, self.payload_at + self.shape.ring_bytes, 0)
        os.pwrite(twin.descriptor, whole, 0)
        twin.head, twin.freed = self.head, self.freed
        twin.payload_head, twin.payload_freed = self.payload_head, self.payload_freed
        twin.anchor, twin.anchor_hash = self.anchor, self.anchor_hash
        twin._ends = dict(self._ends)
        twin.newest_time, twin.left = self.newest_time, self.left
        return twin

    def close(self) -> None:
        os.close(self.descriptor)
