"""A model of the tap of one group: disks, ring, states, syncs, and how they die.

Independent of the Rust sources in everything but the formats. Each write is two instants, its place
on the disk and its record; a sync's read lies between its mark and its block; so what may happen
between them does. All that a judge needs is written into the tap's History as it happens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from host_agent.wire.record import Op, State
from tests.sim.history import History
from tests.sim.ring import Item, Left, Ring, RingFull, Shape

GRAIN = 4096
_PIECE = 16 * 1024
#: Requests beyond this are recorded in pieces.
REQUEST_PIECE = 16 * 1024
_CAUSES = (
    "first_start",
    "ring_lost",
    "unclean_stop",
    "disk_added",
    "disk_changed",
    "ring_full",
    "disk_error",
    "agent_away",
    "journal_differs",
    "forced",
)


@dataclass
class Pending:
    """A write that the disk took and the ring does not have yet."""

    disk: int
    offset: int
    data: bytes
    op: Op
    serial: int


@dataclass
class TapMeans:
    """What a tap takes from outside."""

    rng: random.Random
    wall_ns: Callable[[], int]
    count: Callable[[str], None]
    notify: Callable[[], None] = lambda: None


@dataclass
class Kept:
    """What the tap's state directory and the disks keep over a power loss."""

    generation: bytes | None = None
    is_clean: bool = False
    mood: tuple[State, str, int, int] | None = None
    to_read: dict[int, set[int]] = field(default_factory=dict)


class Tap:
    """The tap's process, while it lives. `history` hears of all that counts."""

    def __init__(
        self,
        shape: Shape,
        means: TapMeans,
        history: History,
        kept: Kept,
        ring: Ring | None,
        disks: list[bytearray],
    ) -> None:
        self.shape, self.means, self.history, self.kept = shape, means, history, kept
        self.disks = disks
        self.names = list(shape.disks)
        self.state, self.cause = State.DIRTY, "first_start"
        self.last_good = self.last_time = 0
        self.to_read: dict[int, set[int]] = {n: set() for n in range(len(disks))}
        self.epoch = self.total = self.reads = self.serial = self.barrier = 0
        self.begin_seq = 0
        self.again: dict[int, set[int]] = {n: set() for n in range(len(disks))}
        self.pending: list[Pending] = []
        self.reading: list[tuple[int, int, int]] = []
        self.is_alive = True
        self.ring = self._open_ring(ring)
        self.ring.left = None
        kept.is_clean, kept.mood = False, None

    # --- beginning and end

    def _open_ring(self, ring: Ring | None) -> Ring:
        kept, before = self.kept, self.kept.generation
        if ring is not None and ring.generation == before and kept.is_clean and kept.mood:
            state, self.cause, self.last_good, self.last_time = kept.mood
            self.state = State.RECORDING if state == State.RECORDING else State.DIRTY
            self.to_read = {n: set(found) for n, found in kept.to_read.items()}
            if self.state == State.RECORDING:
                self.last_good = ring.head
            self.means.count("tap_clean_start")
            return ring
        if ring is not None and ring.generation == before and ring.left is not None:
            self._recover(ring, ring.left)
            return ring
        if ring is not None:
            ring.close()
        name = self._new_name()
        self.cause = "first_start" if before is None else "ring_lost"
        ring = Ring(name, before or bytes(16), self.shape)
        kept.generation = name
        self.history.begin_generation(name, ring.predecessor)
        self.means.count(f"cause_{self.cause}")
        self._mark_everything()
        return ring

    def _recover(self, ring: Ring, left: Left) -> None:
        """Killed while recording: all but what was in flight is in the ring. Else nothing is."""
        self.cause, self.last_time = "unclean_stop", ring.newest_time
        self.means.count("cause_unclean_stop")
        if left.state != State.RECORDING:
            self.last_good = left.last_good
            self._mark_everything()
            return
        self.last_good = ring.head
        for disk, offset, length in left.in_flight:
            self.means.count("in_flight_at_kill")
            self._mark(disk, offset, length)

    def _mark(self, disk: int, offset: int, length: int) -> None:
        blocks = range(offset // GRAIN, (offset + length + GRAIN - 1) // GRAIN)
        self.to_read[disk].update(blocks)
        self.again[disk].update(blocks)

    def _new_name(self) -> bytes:
        return self.means.rng.randbytes(16)

    def _mark_everything(self) -> None:
        for number, disk in enumerate(self.disks):
            self.to_read[number] = set(range(len(disk) // GRAIN))

    def stop_cleanly(self) -> None:
        """An orderly stop: writes in flight are recorded, the ring is left clean."""
        for one in list(self.pending):
            self.record(one)
        self.kept = self.snapshot(self.kept)
        self.die()

    def snapshot(self, kept: Kept) -> Kept:
        """What an orderly stop now would leave, written into `kept`."""
        kept.generation, kept.is_clean = self.ring.generation, True
        kept.mood = (self.state, self.cause, self.last_good, self.last_time)
        kept.to_read = {n: set(found) for n, found in self.to_read.items()}
        for disk, offset, length in self.reading:  # not recorded yet
            kept.to_read[disk].update(range(offset // GRAIN, (offset + length) // GRAIN))
        return kept

    def die(self) -> None:
        """SIGKILL: what was in flight is on the disks and nowhere else."""
        for one in self.pending:
            self.history.lost(one.disk, one.offset, one.data)
        in_flight = tuple((one.disk, one.offset, len(one.data)) for one in self.pending)
        self.ring.left = Left(self.state, self.last_good, in_flight)
        self.pending.clear()
        self.is_alive = False
        self.means.notify()

    # --- what guests do

    def begin_write(self, op: Op, disk: int, offset: int, data: bytes) -> Pending | None:
        """The disk accepts it; None if it overlaps one that is in flight."""
        end = offset + len(data)
        for one in self.pending:
            if one.disk == disk and one.offset < end and offset < one.offset + len(one.data):
                return None
        self.disks[disk][offset:end] = data
        self.serial += 1
        made = Pending(disk, offset, data, op, self.serial)
        self.pending.append(made)
        return made

    def record(self, one: Pending) -> bool:
        """Its record, and the guest's answer. False if the tap died meanwhile."""
        if one not in self.pending:
            return False
        self.pending.remove(one)
        index = self.history.applied(one.disk, one.offset, one.data)
        length = len(one.data)
        pieces = range(0, length, REQUEST_PIECE) if one.op == Op.WRITE else range(1)
        room = self.ring.has_room(length if one.op == Op.WRITE else 0, len(pieces))
        if self.state == State.DIRTY or not room:
            self._drop(one.disk, one.offset, length, "ring_full")
            return True
        if one.op != Op.WRITE:
            self._append(Item(one.op, one.disk, one.offset, length))
            return True
        for at in pieces:
            piece = one.data[at : at + REQUEST_PIECE]
            is_last = at + REQUEST_PIECE >= length
            flags = (0 if is_last else 2) | (4 if at else 0)
            if not is_last:
                self.means.count("request_in_pieces")
            try:
                self._append(
                    Item(Op.WRITE, one.disk, one.offset + at, len(piece), piece, flags=flags),
                    index,
                )
            except RingFull:
                self._drop(one.disk, one.offset, length, "ring_full")
                return True
        return True

    def refuse(self, disk: int, offset: int, data: bytes) -> None:
        """The disk took a part of a write and failed: the guest's error, and a dirty range."""
        self.disks[disk][offset : offset + len(data)] = data
        self.history.lost(disk, offset, data)
        self._drop(disk, offset, max(1, len(data)), "disk_error")

    def flush(self, disk: int) -> None:
        """A flush of the disk succeeded."""
        if self.state == State.DIRTY or not self.ring.has_room(0):
            self._drop(disk, 0, 0, "ring_full")
        else:
            self._append(Item(Op.FLUSH, disk))

    def _drop(self, disk: int, offset: int, length: int, cause: str) -> None:
        self._mark(disk, offset, length)
        self.fall(cause)

    def fall(self, cause: str) -> None:
        """Leave recording or syncing."""
        if self.state == State.DIRTY:
            return
        if self.state == State.RECORDING:
            self.last_good = self.ring.head
        self.state, self.cause = State.DIRTY, cause
        self.epoch += 1
        self.means.count(f"fell_{cause}")
        self.history.fell()
        self.means.notify()

    def time(self) -> int:
        """The stream's time, which never runs back."""
        self.last_time = max(self.last_time, self.means.wall_ns())
        return self.last_time

    def _append(self, item: Item, index: int | None = None, kept: bool = False) -> int:
        seq = self.ring.append(item, self.time(), kept)
        is_point = self.state == State.RECORDING and not item.flags & 2
        self.history.recorded(self.ring.generation, seq, is_point, index)
        self.means.notify()
        return seq

    def _body(self, op: Op, body: dict[str, object], aux: int = 0) -> int:
        return self._append(Item(op, data=json.dumps(body).encode(), aux=aux), kept=True)

    # --- what the agent asks for

    def mark(self, body: dict[str, object]) -> tuple[int, int] | None:
        """A marker; None where markers are refused."""
        if self.state != State.RECORDING:
            return None
        try:
            seq = self._body(Op.MARK, body)
        except RingFull:
            return None
        self.history.marked(str(body["checkpoint"]), self.ring.generation, seq)
        return seq, self.last_time

    def begin_sync(self) -> bool:
        """BEGIN; False if there is no room for it."""
        predecessor = self.ring.predecessor
        body: dict[str, object] = {
            "cause": self.cause,
            "generation": self.ring.generation.hex(),
            "predecessor": predecessor.hex() if any(predecessor) else None,
            "last_good": self.last_good,
            "disks": [
                {"disk": number, "name": name, "size": len(self.disks[number])}
                for number, name in enumerate(self.names)
            ],
        }
        self.state = State.SYNCING
        try:
            self.begin_seq = self._body(Op.BEGIN, body, self.last_good)
            for blocks in self.again.values():
                blocks.clear()
        except RingFull:
            self.state = State.DIRTY
            return False
        self.epoch += 1
        self.total = self.remaining
        self.means.count("sync_begun")
        return True

    @property
    def remaining(self) -> int:
        """Bytes to be read."""
        return sum(map(len, self.to_read.values())) * GRAIN

    def next_to_read(self, before: tuple[int, int] | None = None) -> tuple[int, int, int] | None:
        """(disk, offset, length) of the next piece; of what lies before a place, if that is
        given."""
        for disk, blocks in self.to_read.items():
            if blocks:
                first = min(blocks)
                if before is not None and (disk, first * GRAIN) >= before:
                    return None
                count = 1
                while first + count in blocks and count * GRAIN < _PIECE:
                    count += 1
                return disk, first * GRAIN, count * GRAIN
        return None

    def has_sync_room(self) -> bool:
        """A sync leaves half of the ring to the guests."""
        ring, shape = self.ring, self.shape
        is_room = ring.used + 2 * _PIECE <= shape.ring_bytes // 2
        return is_room and ring.head - ring.anchor + 16 <= shape.slots // 2

    def take_block(self, at: tuple[int, int, int], data: bytes, before: int) -> None:
        """What a read of this interval found."""
        disk, offset, length = at
        has_data = any(data)
        op = Op.SYNC if has_data else Op.SYNC_ZERO
        item = Item(op, disk, offset, length, data if has_data else b"", before)
        try:
            self._append(item)
        except RingFull:
            self._drop(disk, offset, length, "ring_full")

    def try_end(self) -> bool:
        """END, if nothing is to be read and no write is in flight that a read may have missed."""
        if any(one.serial <= self.barrier for one in self.pending):
            return False
        self.state = State.RECORDING
        try:
            self._body(Op.END, {"bytes": self.total, "unreadable": []})
        except RingFull:
            self.fall("ring_full")
            return True
        self.means.count("sync_ended")
        return True

    def drop_to_read(self, disk: int, ranges: list[tuple[int, int]]) -> None:
        """The journal has these ranges; what was marked since the interval began stays."""
        for offset, length in ranges:
            blocks = set(range(-(-offset // GRAIN), (offset + length) // GRAIN))
            self.means.count("found_the_same")
            self.to_read[disk] -= blocks - self.again[disk]
        self.barrier = max(self.barrier, self.serial)

    def force(self) -> None:
        """Everything is to be read again, in this generation."""
        self._mark_everything()
        if self.state != State.DIRTY:
            self.fall("forced")
        self.cause = "forced"

    def new_generation(self, cause: str, predecessor: bytes | None = None) -> bytes:
        """Drop the ring's content and begin again."""
        name = self._new_name()
        self.ring.restart(name, predecessor or self.ring.generation)
        self.kept.generation = name
        self.history.fell()
        self.history.begin_generation(name, self.ring.predecessor)
        self.state, self.cause, self.last_good = State.DIRTY, cause, 0
        self.epoch += 1
        assert cause in _CAUSES
        self.means.count(f"cause_{cause}")
        self._mark_everything()
        self.means.notify()
        return name
