"""A tap in memory: a real ring file in a memfd, a disk as bytes, states as the tap has them."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from host_agent.stream.errors import TapGone
from host_agent.stream.ports import RingOpened, SyncStep, TapState
from host_agent.wire.record import NO_DISK, Op, State
from host_agent.wire.tapctl import TapRefused

HEADER = 4096


@dataclass(frozen=True)
class Item:
    """What to record; `aux` and `body` only where the operation has them."""

    op: Op
    disk: int = NO_DISK
    offset: int = 0
    length: int = 0
    data: bytes = b""
    aux: int = 0
    flags: int = 0


class FakeRing:
    """A ring file as FORMAT.md describes it, written with plain struct calls."""

    def __init__(self, generation: bytes, slots: int, size: int, predecessor: bytes) -> None:
        self.generation, self.slots, self.size = generation, slots, size
        self.descriptor = os.memfd_create("ring")
        self.index_at, self.payload_at = HEADER, HEADER + slots * 64
        os.ftruncate(self.descriptor, self.payload_at + size)
        fixed = struct.pack(
            "<16sQQQQ16sQ40s",
            generation,
            slots,
            size,
            self.index_at,
            self.payload_at,
            predecessor,
            1,
            bytes(40),
        )
        head = b"HFRING\0\x01" + struct.pack("<II", 1, google_crc32c.value(fixed)) + fixed
        os.pwrite(self.descriptor, head, 0)
        self.head = self.freed = self.payload_head = self.payload_freed = 0
        self.anchor, self.anchor_hash = 0, bytes(32)
        self._ends: dict[int, int] = {}

    def has_room(self, length: int) -> bool:
        used = self._start(length) + length - self.payload_freed
        return used <= self.size and self.head + 1 - self.anchor < self.slots

    def _start(self, length: int) -> int:
        at = self.payload_head % self.size
        return self.payload_head + (self.size - at if at + length > self.size else 0)

    def append(self, item: Item, at: int) -> int:
        start = self._start(len(item.data))
        os.pwrite(self.descriptor, item.data, self.payload_at + start % self.size)
        self.payload_head = start + len(item.data)
        self.head += 1
        crc = google_crc32c.value(item.data) if item.data else 0
        row = struct.pack(
            "<QQQQIIIHBBQI",
            self.head,
            at,
            item.offset,
            item.aux,
            item.length,
            crc,
            len(item.data),
            item.disk,
            int(item.op),
            item.flags,
            start,
            self.head // self.slots & 0xFFFFFFFF,
        )
        row += struct.pack("<I", google_crc32c.value(row))
        os.pwrite(self.descriptor, row, self.index_at + self.head % self.slots * 64)
        self._ends[self.head] = self.payload_head
        self._write_positions()
        return self.head

    def _write_positions(self) -> None:
        at = (self.head, self.payload_head, self.freed, self.payload_freed)
        os.pwrite(self.descriptor, struct.pack("<QQQQ", *at), 128)

    def free(self, seq: int) -> None:
        if seq > self.freed:
            self.payload_freed = self._ends[seq]
            for old in range(self.freed + 1, seq + 1):
                self._ends.pop(old, None)
            self.freed = seq
            self._write_positions()


@dataclass
class FakeTap:
    """A guest's disk and its stream. `clock_ns` is stepped by every record."""

    disk_bytes: int = 256 * 1024
    slots: int = 8192
    ring_bytes: int = 1024 * 1024
    clock_ns: int = 1_767_225_600_000_000_000
    has_wall_clock: bool = False
    state_delay: float = 0.0
    free_delay: float = 0.0
    ring: FakeRing = field(init=False)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk = bytearray(self.disk_bytes)
        self.rng = np.random.default_rng(1)
        self.state = State.DIRTY
        self.cause = "first_start"
        self.last_good = 0
        self.to_read = set(range(self.disk_bytes // 4096))
        self.total = len(self.to_read) * 4096
        self.changed = asyncio.Event()
        self.is_gone = False
        self.frees: list[tuple[int, int, bytes]] = []
        self._make_ring(bytes(16))

    def close(self) -> None:
        """Let go of the ring's file."""
        os.close(self.ring.descriptor)

    def _make_ring(self, predecessor: bytes) -> None:
        if any(predecessor):
            self.close()
        self.ring = FakeRing(self.rng.bytes(16), self.slots, self.ring_bytes, predecessor)
        self.predecessor = predecessor

    # --- the guest's side

    def write(self, offset: int, data: bytes) -> None:
        self.disk[offset : offset + len(data)] = data
        item = Item(Op.WRITE, 0, offset, len(data), data)
        if self.state == State.DIRTY or not self.ring.has_room(len(data) + 16 * 1024):
            self._drop(offset, len(data))
        else:
            self._append(item)

    def flush(self) -> None:
        if self.state != State.DIRTY and self.ring.has_room(16 * 1024):
            self._append(Item(Op.FLUSH, 0))

    def _drop(self, offset: int, length: int) -> None:
        blocks = range(offset // 4096, (offset + length + 4095) // 4096)
        self.to_read.update(blocks)
        if self.state != State.DIRTY:
            if self.state == State.RECORDING:
                self.last_good = self.ring.head
            self.state, self.cause = State.DIRTY, "ring_full"
        self.total = len(self.to_read) * 4096
        self._notify()

    def _append(self, item: Item) -> int:
        self._tick()
        seq = self.ring.append(item, self.clock_ns)
        self._notify()
        return seq

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _body(self, op: Op, body: dict[str, object], aux: int = 0) -> int:
        return self._append(Item(op, data=json.dumps(body).encode(), aux=aux))

    # --- the agent's side

    def connection(self) -> TapConnection:
        return TapConnection(self)

    def _tick(self) -> None:
        self.clock_ns = max(self.clock_ns + 1, time.time_ns() if self.has_wall_clock else 0)

    def tap_state(self) -> TapState:
        self._tick()
        return TapState(self.ring.generation, self.ring.head, self.state, self.cause, self.clock_ns)

    def begin(self) -> None:
        body: dict[str, object] = {
            "cause": self.cause,
            "generation": self.ring.generation.hex(),
            "predecessor": None,
            "last_good": self.last_good,
            "disks": [{"disk": 0, "name": "disk", "size": self.disk_bytes}],
        }
        self._body(Op.BEGIN, body, self.last_good)
        self.state = State.SYNCING

    def sync_step(self, limit: int) -> SyncStep:
        if self.state == State.DIRTY:
            self.begin()
        read = 0
        while self.to_read and read < limit:
            if not self.ring.has_room(4096 + 64 * 1024):
                return self._step(read, busy=True)
            block = min(self.to_read)
            self.to_read.discard(block)
            data = bytes(self.disk[block * 4096 : block * 4096 + 4096])
            before = self.ring.head
            if any(data):
                self._append(Item(Op.SYNC, 0, block * 4096, 4096, data, before))
            else:
                self._append(Item(Op.SYNC_ZERO, 0, block * 4096, 4096, b"", before))
            read += 4096
        if not self.to_read:
            self._body(Op.END, {"bytes": self.total, "unreadable": []})
            self.state = State.RECORDING
            self._notify()
        return self._step(read, busy=False)

    def _step(self, read: int, *, busy: bool) -> SyncStep:
        return SyncStep(self.state, read, len(self.to_read) * 4096, self.total, busy)

    def new_generation(self, cause: str) -> bytes:
        self._make_ring(self.ring.generation)
        self.state, self.cause, self.last_good = State.DIRTY, cause, 0
        self.to_read = set(range(self.disk_bytes // 4096))
        self.total = len(self.to_read) * 4096
        self._notify()
        return self.ring.generation


class TapConnection:
    """The stream's port to a FakeTap."""

    def __init__(self, tap: FakeTap) -> None:
        self._tap = tap
        self.is_closed = False

    def _check(self, verb: str) -> None:
        self._tap.calls.append(verb)
        if self._tap.is_gone or self.is_closed:
            raise TapGone("The tap is gone.", retryable=True)

    async def open(self) -> RingOpened:
        self._check("open")
        tap, ring = self._tap, self._tap.ring
        return RingOpened(
            descriptor=os.dup(ring.descriptor),
            generation=ring.generation,
            predecessor=tap.predecessor if any(tap.predecessor) else None,
            head=ring.head,
            freed=ring.freed,
            payload_head=ring.payload_head,
            payload_freed=ring.payload_freed,
            anchor=ring.anchor,
            anchor_hash=ring.anchor_hash,
            state=tap.state,
            cause=tap.cause,
        )

    async def wait(self, after: int, milliseconds: int) -> TapState:
        self._check("wait")
        tap = self._tap
        changed = tap.changed
        if tap.ring.head <= after:
            try:
                async with asyncio.timeout(milliseconds / 1000):
                    await changed.wait()
            except TimeoutError:
                pass
        self._check("waited")
        return tap.tap_state()

    async def state(self) -> TapState:
        self._check("state")
        if self._tap.state_delay:
            await asyncio.sleep(self._tap.state_delay)
        return self._tap.tap_state()

    async def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None:
        self._check("free")
        if self._tap.free_delay:
            await asyncio.sleep(self._tap.free_delay)
        assert anchor % 4096 == 0
        assert anchor <= seq <= self._tap.ring.head
        self._tap.frees.append((seq, anchor, anchor_hash))
        self._tap.ring.free(seq)
        self._tap.ring.anchor, self._tap.ring.anchor_hash = anchor, anchor_hash

    async def sync(self, limit: int) -> SyncStep:
        self._check("sync")
        return self._tap.sync_step(limit)

    async def mark(self, body: dict[str, object]) -> tuple[int, int]:
        self._check("mark")
        if self._tap.state != State.RECORDING:
            raise TapRefused({"error": "not_recording", "message": "The stream is syncing."})
        return self._tap._body(Op.MARK, body), self._tap.clock_ns

    async def new_generation(self, cause: str) -> bytes:
        self._check("new_generation")
        return self._tap.new_generation(cause)

    async def close(self) -> None:
        self.is_closed = True
