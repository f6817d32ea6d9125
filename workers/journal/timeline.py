"""What happened in a stream besides writes: generations, syncs, disks, checkpoints. Pure; fed in
order.

Rows number the records of all generations of a chain one after another, from 0. A position is
(generation, sequence); the row of sequence s is the generation's first row + s - 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import numpy as np

from host_agent.wire.errors import WireError
from host_agent.wire.frame import (
    KIND_APPLICATION,
    KIND_TAGGED,
    SCOPE_COMMIT,
    SCOPE_GROUP,
    SCOPE_STREAM,
    Marker,
)
from host_agent.wire.record import RECORD, Op, Records
from workers.journal import bodies
from workers.journal.bodies import BeginBody, CommitBody, DetachBody, DiskBody, EndBody, MarkBody
from workers.journal.marks import Mark, Marks

NO_CHECKPOINT = bytes(16)
KINDS = {1: "crash", 2: "application", 3: "tagged"}
_KIND_NUMBERS = {name: number for number, name in KINDS.items()}
_WANTED = np.zeros(256, bool)
_WANTED[[Op.BEGIN, Op.END, Op.COMMIT, Op.DISK, Op.DETACH]] = True
_SPECIAL = np.zeros(256, bool)
_SPECIAL[Op.RESIZE] = True
_SPECIAL[int(Op.BEGIN) :] = True
_ON_DISK = np.zeros(256, bool)
_ON_DISK[[Op.WRITE, Op.ZERO, Op.TRIM, Op.FLUSH, Op.RESIZE, Op.SYNC, Op.SYNC_ZERO]] = True


@dataclass
class SyncInterval:
    """From BEGIN to END; `end` is None while no END has come. Positions in the generation."""

    begin: int
    last_good: int
    cause: str
    end: int | None = None
    unreadable: tuple[tuple[int, int, int], ...] = ()


#: The cause of the interval that stands for what lies in layers: nothing in it can be chosen.
FOLDED = "folded"


@dataclass(frozen=True)
class KeptEnd:
    """The end of a layer inside a generation: its row, and what the disk could not be read at."""

    row: int
    unreadable: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class LayerRow:
    """A layer as a row. `over`: the row of the layer under it; None: zeroes."""

    row: int
    over: int | None
    generation: int
    seq: int


@dataclass
class Generation:
    """One numbering of the stream.

    Where its beginning lies in layers, `first_seq` is the first sequence from which on all rows are
    there, at `start_row`, and `kept` has the ends of layers.
    """

    index: int
    name: bytes
    first_row: int
    predecessor: bytes | None = None
    last_seq: int = 0
    syncs: list[SyncInterval] = field(default_factory=list)
    #: The first HANDOVER: from there on, part of the history is in another stream.
    handover: int | None = None
    first_seq: int = 1
    start_row: int = 0
    kept: dict[int, KeptEnd] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start_row = self.start_row or self.first_row

    @property
    def hex(self) -> str:
        """The generation's name as people see it."""
        return self.name.hex()

    def row(self, seq: int) -> int:
        """The row of a sequence."""
        kept = self.kept.get(seq)
        return kept.row if kept is not None else self.first_row + seq - 1

    def is_gone(self, seq: int) -> bool:
        """Whether the sequence lies in a layer, and is not its end."""
        return seq < self.first_seq and seq not in self.kept

    @property
    def open_sync(self) -> SyncInterval | None:
        """The interval that has no END yet."""
        return self.syncs[-1] if self.syncs and self.syncs[-1].end is None else None


@dataclass(frozen=True)
class Checkpoint:
    """A marker that may be chosen. `time` is the stream's own, nanoseconds UTC."""

    id: str
    generation: int
    seq: int
    time: int
    kind: str
    scope: str
    tag: str | None


@dataclass(frozen=True)
class BaseLayer:
    """A layer as a timeline needs it. `disks`: (number, name, size in bytes) at its end; `over`:
    the layer under it, from 0."""

    over: int | None
    generation: bytes
    seq: int
    disks: list[tuple[int, str, int]]
    unreadable: tuple[tuple[int, int, int], ...]
    checkpoints: list[Checkpoint]


@dataclass(frozen=True)
class BaseGeneration:
    """A generation that lies in layers up to `last_seq`."""

    name: bytes
    predecessor: bytes | None
    last_seq: int


@dataclass(frozen=True)
class Base:
    """What layers tell a timeline, oldest first."""

    generations: list[BaseGeneration]
    disk_names: list[str]
    layers: list[BaseLayer]


@dataclass(frozen=True)
class DiskChange:
    """From `row` on, number `number` is disk `disk` with `size` bytes; `size` None: it left.

    `cut` says that bytes from `size` up (all, if it left) were given up at that row.
    """

    row: int
    number: int
    disk: int
    size: int | None
    cut: bool


class Special(msgspec.Struct, frozen=True, array_like=True):
    """A record that a timeline looks at, other than markers: its 48 bytes, its body if wanted."""

    record: bytes
    body: bytes | None


def specials_of(records: Records, found: dict[int, bytes]) -> list[Special]:
    """What `Timeline.replay` needs of a frame."""
    op = records["op"]
    is_mark = (op == Op.MARK) | (op == Op.COMMIT)
    rows = np.flatnonzero(((op >= Op.BEGIN) & ~is_mark) | (op == Op.RESIZE))
    return [
        Special(records[row : row + 1].tobytes(), found.get(seq))
        for row, seq in zip(rows.tolist(), records["seq"][rows].tolist(), strict=True)
    ]


class Timeline:
    """Takes every frame's records in order and keeps what a restore must know of them."""

    def __init__(self, stream: tuple[str, str]) -> None:
        """`stream` is (group, host)."""
        self._stream = stream
        self.generations: list[Generation] = []
        self.changes: list[DiskChange] = []
        self.disk_names: list[str] = []
        self.rows = 0
        self.layers: list[LayerRow] = []
        self.marks = Marks(lambda row: self.position(row)[1])
        self._numbers: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._mapped = np.zeros(65536, bool)

    def begin_with(self, base: Base) -> None:
        """What layers stand for comes before all records: each of them is one row."""
        self.disk_names = list(base.disk_names)
        numbers: dict[bytes, Generation] = {}
        for found in base.generations:
            index = len(self.generations)
            generation = Generation(index, found.name, 0, found.predecessor, found.last_seq)
            # Rows that follow the layers continue its sequence; before, it has none.
            generation.first_row = len(base.layers) - found.last_seq
            generation.first_seq = found.last_seq + 1
            generation.start_row = len(base.layers)
            generation.syncs.append(SyncInterval(1, 0, FOLDED))
            self.generations.append(generation)
            numbers[found.name] = generation
        for row, layer in enumerate(base.layers):
            generation = numbers[layer.generation]
            generation.kept[layer.seq] = KeptEnd(row, layer.unreadable)
            self.layers.append(LayerRow(row, layer.over, generation.index, layer.seq))
            self._settle(row, layer.disks)
            for mark in layer.checkpoints:
                scope = SCOPE_STREAM if mark.scope == "stream" else SCOPE_GROUP
                name = bytes.fromhex(mark.id)
                self.marks.add(
                    Mark(row, name, mark.time, scope, _KIND_NUMBERS[mark.kind], mark.tag)
                )
                self.marks.commit(row, name, layer.seq)
        head, newest = base.layers[-1], self.generations[-1]
        if head.generation != newest.name or head.seq != newest.last_seq:
            raise WireError("The newest layer does not end where its generations do.")
        newest.first_seq = head.seq
        newest.syncs[-1].end = head.seq
        newest.syncs[-1].unreadable = head.unreadable
        self.rows = len(base.layers)

    def _settle(self, row: int, disks: list[tuple[int, str, int]]) -> None:
        """The disks at the end of a layer; what was given up before is in its content."""
        sizes = {self.disk_names.index(name): size for _, name, size in disks}
        for number, index in list(self._numbers.items()):
            if index not in sizes:
                self.changes.append(DiskChange(row, number, index, None, cut=False))
        self._numbers = {number: self.disk_names.index(name) for number, name, _ in disks}
        self._sizes = sizes
        self._mapped[:] = False
        for number, index in self._numbers.items():
            self._mapped[number] = True
            self.changes.append(DiskChange(row, number, index, sizes[index], cut=False))

    def start_generation(self, name: bytes) -> Generation:
        """A new numbering begins with the next record."""
        if any(g.name == name for g in self.generations):
            raise WireError(f"Generation {name.hex()} comes back after another.")
        generation = Generation(len(self.generations), name, self.rows)
        self.generations.append(generation)
        return generation

    def add(self, records: Records, found: dict[int, bytes], markers: tuple[Marker, ...]) -> None:
        """The next frame's records. `found` holds the bodies by sequence where `wants_body` said
        so."""
        generation = self.generations[-1]
        by_seq = {marker.seq: marker for marker in markers}
        if generation.last_seq == 0 and int(records[0]["op"]) != Op.BEGIN:
            raise WireError("The generation does not begin with BEGIN.")
        special = np.flatnonzero(_SPECIAL[records["op"]])
        done = 0
        for at in special.tolist():
            self._check_disks(records[done:at])
            row = records[at]
            if int(row["op"]) == Op.RESIZE:
                self._check_disks(records[at : at + 1])
                self._resize(self.rows + at, int(row["disk"]), int(row["offset"]))
            else:
                self._take(row, self.rows + at, found.get(int(row["seq"])), by_seq)
            done = at + 1
        self._check_disks(records[done:])
        if by_seq:
            raise WireError(f"A marker at sequence {min(by_seq)} stands for no record.")
        generation.last_seq = int(records[-1]["seq"])
        self.rows += len(records)

    def replay(self, records: int, specials: Iterable[Special]) -> None:
        """What `add` took of the generation's next `records` records, kept by an index object."""
        generation = self.generations[-1]
        for special in specials:
            row = np.frombuffer(special.record, RECORD)[0]
            seq = int(row["seq"])
            at = generation.row(seq)
            if not self.rows <= at < self.rows + records:
                raise WireError("A kept record lies outside the records that it is among.")
            if int(row["op"]) == Op.RESIZE:
                if int(row["disk"]) not in self._numbers:
                    raise WireError("A record names a disk that the stream does not have.")
                self._resize(at, int(row["disk"]), int(row["offset"]))
            else:
                self._take(row, at, special.body, {})
        generation.last_seq += records
        self.rows += records

    def _check_disks(self, records: Records) -> None:
        disks = records["disk"][_ON_DISK[records["op"]]]
        if not self._mapped[disks].all():
            raise WireError("A record names a disk that the stream does not have.")

    def _take(self, row: Records, at: int, body: bytes | None, markers: dict[int, Marker]) -> None:
        generation, seq, op = self.generations[-1], int(row["seq"]), int(row["op"])
        if op == Op.BEGIN:
            self._begin(generation, row, at, bodies.parse(body or b"", BeginBody))
        elif op == Op.END:
            self._end(generation, seq, bodies.parse(body or b"{}", EndBody))
        elif op == Op.MARK:
            self._mark(generation, at, body, markers.pop(seq, None))
        elif op == Op.COMMIT:
            markers.pop(seq, None)
            self._commit(at, bodies.parse(body or b"", CommitBody))
        elif op == Op.DISK:
            self._describe(at, bodies.parse(body or b"", DiskBody))
        elif op == Op.DETACH:
            self._detach(at, bodies.parse(body or b"", DetachBody).disk)
        elif op == Op.HANDOVER:
            generation.handover = generation.handover or seq

    def _begin(self, generation: Generation, row: Records, at: int, body: BeginBody) -> None:
        seq = int(row["seq"])
        if body.generation != generation.hex:
            raise WireError("BEGIN names another generation than its frame.")
        first = seq == 1
        if first and body.predecessor is not None:
            generation.predecessor = bytes.fromhex(body.predecessor)
        if first and generation.predecessor is None:
            # Nothing of what came before belongs to these disks.
            for number in list(self._numbers):
                self._detach(at, number)
        last_good = seq - 1 if first else min(seq - 1, int(row["aux"]) or seq - 1)
        if generation.open_sync is None:
            generation.syncs.append(SyncInterval(seq, last_good, body.cause))
        named = {disk.name for disk in body.disks}
        for number, index in list(self._numbers.items()):
            if self.disk_names[index] not in named:
                self._detach(at, number)
        for number in list(self._numbers):
            self._unmap(number)
        for disk in body.disks:
            self._describe(at, disk, cut=True)

    def _end(self, generation: Generation, seq: int, body: EndBody) -> None:
        sync = generation.open_sync
        if sync is None:
            raise WireError("END comes without BEGIN.")
        sync.end = seq
        sync.unreadable = tuple(body.unreadable)

    def _mark(
        self, generation: Generation, at: int, body: bytes | None, marker: Marker | None
    ) -> None:
        if marker is None or marker.scope == SCOPE_COMMIT:
            raise WireError("A checkpoint's marker is missing from the clear header of its frame.")
        tag = None
        if body is not None:
            said = bodies.parse(body, MarkBody)
            tag = said.tag
            if said.checkpoint != marker.checkpoint.hex():
                raise WireError("A marker's body names another checkpoint than the clear header.")
        if generation.open_sync is not None:
            return
        mark = Mark(at, marker.checkpoint, marker.time, marker.scope, marker.kind, tag)
        self.marks.add(mark)

    def _commit(self, at: int, body: CommitBody) -> None:
        group, host = self._stream
        position = body.positions.get(f"{group}/{host}") or body.positions.get(host)
        if position is None:
            return
        with suppress(ValueError):
            name = bytes.fromhex(body.checkpoint)
            if len(name) == len(NO_CHECKPOINT):
                self.marks.commit(at, name, position[1])

    def _describe(self, at: int, disk: DiskBody, *, cut: bool = False) -> None:
        if disk.name not in self.disk_names:
            self.disk_names.append(disk.name)
        index = self.disk_names.index(disk.name)
        old = self._numbers.get(disk.disk)
        if old is not None and old != index:
            self._detach(at, disk.disk)
        for number in [n for n, held in self._numbers.items() if held == index]:
            self._unmap(number)
        cut = cut or self._sizes.get(index) != disk.size
        self._numbers[disk.disk] = index
        self._mapped[disk.disk] = True
        self._sizes[index] = disk.size
        self.changes.append(DiskChange(at, disk.disk, index, disk.size, cut))

    def _unmap(self, number: int) -> None:
        del self._numbers[number]
        self._mapped[number] = False

    def _resize(self, at: int, number: int, size: int) -> None:
        index = self._numbers[number]
        self._sizes[index] = size
        self.changes.append(DiskChange(at, number, index, size, cut=True))

    def _detach(self, at: int, number: int) -> None:
        index = self._numbers.pop(number, None)
        if index is None:
            raise WireError("A disk leaves that the stream does not have.")
        self._mapped[number] = False
        self._sizes.pop(index, None)
        self.changes.append(DiskChange(at, number, index, None, cut=True))

    def position(self, row: int) -> tuple[int, int]:
        """The number of the generation that holds a row, and the row's sequence in it."""
        if row < len(self.layers):
            return self.layers[row].generation, self.layers[row].seq
        index = bisect_right(self.generations, row, key=lambda g: g.start_row) - 1
        return index, row - self.generations[index].first_row + 1

    def checkpoints(self, newest: int | None = None) -> list[Checkpoint]:
        """The checkpoints that exist, oldest first: those of scope group only with their commit.

        All, or only so many of the newest.
        """
        return [self._checkpoint(mark) for mark in reversed(self.marks.newest(newest))]

    def checkpoints_by_id(self, start: str) -> list[Checkpoint]:
        """The checkpoints whose ids begin so."""
        return [self._checkpoint(mark) for mark in self.marks.with_id(start)]

    def checkpoints_by_tag(self, tag: str) -> list[Checkpoint]:
        """The checkpoints of a tag."""
        return [self._checkpoint(mark) for mark in self.marks.with_tag(tag)]

    def _checkpoint(self, mark: Mark) -> Checkpoint:
        generation, seq = self.position(mark.row)
        scope = "stream" if mark.scope == SCOPE_STREAM else "group"
        return Checkpoint(
            mark.id.hex(), generation, seq, mark.time, KINDS[mark.kind], scope, mark.tag
        )

    def disks_at(self, row: int) -> dict[int, int]:
        """The disks that the stream has after that row: disk to size in bytes."""
        sizes: dict[int, int] = {}
        for change in self.changes:
            if change.row > row:
                break
            if change.size is None:
                sizes.pop(change.disk, None)
            else:
                sizes[change.disk] = change.size
        return sizes


def wants_body(records: Records, markers: tuple[Marker, ...]) -> list[int]:
    """Rows of a frame whose bodies a timeline must see."""
    rows: list[int] = np.flatnonzero(_WANTED[records["op"]]).tolist()
    first = int(records[0]["seq"])
    rows += [
        marker.seq - first
        for marker in markers
        if marker.kind in (KIND_APPLICATION, KIND_TAGGED) and marker.scope != SCOPE_COMMIT
    ]
    return sorted(set(rows))
