"""Where a map's writes come from, cut into cells of one address space over all disks.

Each run of the journal is a source: segments that were opened lie in the journal's spools and are
put into cells once; an index object is asked for the part that a cell needs. What lies under all of
them (a base layer) is one more source, before all others, with keys below theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from host_agent.wire import limits
from host_agent.wire.record import Op
from workers.journal.blocks import IndexBlock
from workers.journal.columns import distinct
from workers.journal.journal import Journal
from workers.journal.points import Point
from workers.journal.runs import SegmentRun
from workers.journal.spool import Runs
from workers.journal.timeline import DiskChange, Generation

#: Each disk has its own piece of one address space: 2^46 bytes, the largest disk.
DISK_SHIFT = limits.DISK_BYTES_MAX.bit_length() - 1

#: In place of a frame's number: the write is of zeroes.
NO_FRAME = np.uint32((1 << 32) - 1)

#: Rows that are looked at together while they are put into cells.
BATCH_ROWS = 512 * 1024

_SAMPLES = 64 * 1024
_CELLS_MAX = (1 << 16) - 1
_SHIFT = np.uint64(DISK_SHIFT)

_WRITES = np.zeros(256, bool)
_WRITES[[Op.WRITE, Op.SYNC, Op.ZERO, Op.TRIM, Op.SYNC_ZERO]] = True
_DATA = np.zeros(256, bool)
_DATA[[Op.WRITE, Op.SYNC]] = True
_SYNC = np.zeros(256, bool)
_SYNC[[Op.SYNC, Op.SYNC_ZERO]] = True

#: `start` and `end` (addresses), `key` (their order), `frame`, and `base`: the place in the frame's
#: payload is address + base, modulo 2^32.
Columns = dict[str, NDArray[Any]]
KINDS = {"start": "<u8", "end": "<u8", "key": "<u8", "frame": "<u4", "base": "<u4"}


@dataclass(frozen=True)
class Stretch:
    """Rows that count, and what their positions are raised by to follow the earlier ones.

    Positions count from 1 at `first_row`; before it `skipped` sequences of the generation lie in
    layers. `begins`: the first row begins a generation.
    """

    first_row: int
    end_row: int
    raised: int
    skipped: int = 0
    begins: bool = False


@dataclass(frozen=True)
class Lineage:
    """The generations that lead to a point, oldest first. `is_whole`: the base under them is known
    to be zeroes."""

    stretches: list[Stretch]
    is_whole: bool
    root: str = ""


def lineage(journal: Journal, point: Point) -> Lineage:
    """Follow predecessors back from the point's generation."""
    generations = journal.timeline.generations
    by_name = {g.name: g for g in generations}
    generation, seq = generations[point.generation], point.seq
    path: list[Stretch] = []
    while True:
        is_whole = _add_path(journal, path, generation, seq)
        if is_whole is not None:
            break
        predecessor = generation.predecessor
        before = by_name.get(predecessor) if predecessor is not None else None
        if before is None or before.index >= generation.index or not before.last_seq:
            is_whole = predecessor is None
            break
        generation, seq = before, before.last_seq
    stretches, raised = [], 0
    for stretch in reversed(path):
        stretches.append(replace(stretch, raised=raised))
        # Position 0 of a stretch is a key of its own: what lies under its first record.
        raised += stretch.end_row - stretch.first_row + 1
    return Lineage(stretches, is_whole, generation.hex)


def _add_path(
    journal: Journal, path: list[Stretch], generation: Generation, seq: int
) -> bool | None:
    """Add what leads to a position within its generation, newest first; None: all of it is there.

    Else whether what lies under the generation's rows is known: it lies in layers.
    """
    if seq >= generation.first_seq:
        skipped = generation.first_seq if generation.first_seq > 1 else 0
        if seq > skipped:
            first = generation.row(skipped + 1)
            begins = not skipped
            path.append(Stretch(first, first + seq - skipped, 0, skipped, begins))
        if not skipped:
            return None
        seq = generation.first_seq
    kept = generation.kept.get(seq)
    if kept is None:
        return False
    layer: int | None = kept.row
    while layer is not None:
        path.append(Stretch(layer, layer + 1, 0))
        layer = journal.timeline.layers[layer].over
    return True


class Source(Protocol):
    """Some of a map's writes."""

    def sample(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Addresses, and how many writes begin about there."""
        ...

    def cell(self, number: int) -> Columns:
        """The writes that touch a cell, in the order of their rows."""
        ...

    def within(self, low: int, high: int) -> Columns:
        """The writes that touch the addresses `low` .. `high` of one disk, in the same order."""
        ...

    def close(self) -> None:
        """Give temporary files back."""
        ...


class NumberTables:
    """Which disk of the map a record's number means: it may change when disks come and go.

    `slots` gives each disk of the stream its order in the map; -1: it is not in it.
    """

    def __init__(self, changes: list[DiskChange], slots: NDArray[np.int32]) -> None:
        tables = [np.full(limits.STREAM_DISKS_MAX, -1, np.int32)]
        rows = [0]
        for change in changes:
            meaning = int(slots[change.disk])
            if change.size is None or int(tables[-1][change.number]) == meaning:
                continue
            table = tables[-1].copy()
            table[change.number] = meaning
            tables.append(table)
            rows.append(change.row)
        self._tables = np.stack(tables)
        self._rows = np.array(rows, np.uint64)

    def slots(self, row: NDArray[np.uint64], number: NDArray[np.uint16]) -> NDArray[np.int32]:
        """Order in the map of each record's disk; -1 if it is not in it."""
        table = np.searchsorted(self._rows, row, "right") - 1
        found: NDArray[np.int32] = self._tables[
            table, np.minimum(number, limits.STREAM_DISKS_MAX - 1)
        ]
        return found

    def pairs(self) -> set[tuple[int, int]]:
        """(order in the map, number) wherever a number ever meant a disk of the map."""
        return {
            (int(slot), number)
            for table in self._tables
            for number, slot in enumerate(table.tolist())
            if slot >= 0
        }


class _View:
    """How rows of the journal become writes of the map."""

    def __init__(self, journal: Journal, line: Lineage, sizes: dict[int, int], row: int) -> None:
        timeline = journal.timeline
        # Disks of the stream to their order in the map; -1 for those that left before the point.
        self._slots = np.full(len(timeline.disk_names) + 1, -1, np.int32)
        self._slots[sorted(sizes)] = np.arange(len(sizes))
        self._sizes = np.array([size for _, size in sorted(sizes.items())] or [0], np.uint64)
        self.tables = NumberTables(timeline.changes, self._slots)
        self.pairs = self.tables.pairs()
        self.end_row = row + 1
        # By rows, as the stretches are.
        self._line = sorted(line.stretches, key=lambda stretch: stretch.first_row)
        self._firsts = np.array([s.first_row for s in self._line], np.uint64)
        self._ends = np.array([s.end_row for s in self._line], np.uint64)
        self._raised = np.array([s.raised for s in self._line], np.uint64)
        self._skipped = np.array([s.skipped for s in self._line], np.uint64)
        self._changes = [c for c in timeline.changes if c.cut and c.row <= row]

    def writes(self, entries: Columns) -> Columns:
        """Of entries, those that count, cut to their disks' sizes."""
        index = np.flatnonzero(_WRITES[entries["op"]])
        row = entries["row"][index].astype(np.uint64)
        number = np.searchsorted(self._firsts, row, "right") - 1
        slot = self.tables.slots(row, entries["disk"][index])
        offset = entries["offset"][index].astype(np.uint64)
        size = self._sizes[np.maximum(slot, 0)]
        keep = (number >= 0) & (row < self._ends[number]) & (slot >= 0) & (offset < size)
        if not keep.all():
            index, number, row = index[keep], number[keep], row[keep]
            slot, offset, size = slot[keep], offset[keep], size[keep]
        op = entries["op"][index]
        skipped = self._skipped[number]
        aux = np.maximum(entries["aux"][index], skipped) - skipped
        position = np.where(_SYNC[op], aux, row - self._firsts[number] + np.uint64(1))
        end = np.minimum(offset + entries["length"][index], size)
        base = slot.astype(np.uint64) << _SHIFT
        start = base + offset
        frame = np.where(_DATA[op], entries["frame"][index], NO_FRAME).astype(np.uint32)
        at = entries["payload_at"][index].astype(np.uint32) - start.astype(np.uint32)
        key = position + self._raised[number]
        return {"start": start, "end": base + end, "key": key, "frame": frame, "base": at}

    def cuts(self) -> Columns:
        """What a new size or a disk's leaving gave up: zeroes from there to the disk's end.

        Of equal keys these come first: only sync blocks that were read later have the same.
        """
        rows = []
        for change in self._changes:
            slot = int(self._slots[change.disk])
            stretch = next((s for s in self._line if s.first_row <= change.row < s.end_row), None)
            kept = change.size or 0
            if stretch is None or slot < 0 or kept >= int(self._sizes[slot]):
                continue
            # The first BEGIN describes what lies under its generation: it loses to all its records.
            within = change.row - stretch.first_row
            position = 0 if stretch.begins and not within else within + 1
            low = (slot << DISK_SHIFT) + kept
            high = (slot << DISK_SHIFT) + int(self._sizes[slot])
            rows.append((low, high, position + stretch.raised))
        table = np.array(rows, np.uint64).reshape(-1, 3)
        count = len(rows)
        return {
            "start": table[:, 0], "end": table[:, 1], "key": table[:, 2],
            "frame": np.full(count, NO_FRAME), "base": np.zeros(count, np.uint32),
        }  # fmt: skip


class Sources:
    """All sources of a map. `cut` comes first, then cells in any order, from several threads."""

    def __init__(self, journal: Journal, line: Lineage, sizes: dict[int, int], row: int) -> None:
        """`row` is that of the point."""
        self._view = _View(journal, line, sizes, row)
        self._end = np.uint64(max(1, len(sizes)) << DISK_SHIFT)
        self._cuts = self._view.cuts()
        self.bounds = np.array([0, self._end], np.uint64)
        self._sources: list[Source] = []
        for run in journal.runs:
            if run.first_row > row or not run.rows:
                continue
            if isinstance(run, IndexBlock):
                self._sources.append(_FromIndex(self, self._view, run))
            elif isinstance(run, SegmentRun):
                self._sources.append(_FromSegments(self, self._view, (journal, run)))

    def close(self) -> None:
        """Give the temporary files back."""
        for source in self._sources:
            source.close()

    def cut(self, writes: int) -> NDArray[np.uint64]:
        """Choose the addresses between cells, so that about `writes` fall into each."""
        samples = [source.sample() for source in self._sources]
        starts = np.concatenate([s for s, _ in samples] or [np.empty(0, np.uint64)])
        weights = np.concatenate([w for _, w in samples] or [np.empty(0, np.uint64)])
        total = int(weights.sum(dtype=np.uint64))
        cells = min(_CELLS_MAX, max(1, -(-total // writes)))
        inner = np.empty(0, np.uint64)
        if cells > 1:
            order = np.argsort(starts, kind="stable")
            until = np.cumsum(weights[order], dtype=np.uint64)
            marks = np.arange(1, cells, dtype=np.uint64) * np.uint64(total) // np.uint64(cells)
            inner = distinct(starts[order][np.searchsorted(until, marks)])
            inner = inner[inner > 0]
        self.bounds = np.concatenate([np.zeros(1, np.uint64), inner, np.array([self._end])])
        return self.bounds

    def cell(self, number: int) -> Columns:
        """The writes of a cell in the order of their rows; what was given up comes first."""
        low, high = self.bounds[number], self.bounds[number + 1]
        parts = [self._cuts_within(low, high)]
        parts += [source.cell(number) for source in self._sources]
        return {name: np.concatenate([part[name] for part in parts]) for name in KINDS}

    def within(self, low: int, high: int) -> Columns:
        """What `cell` gives of a range of one disk. Before `cut`, too: every source is looked
        through for it."""
        parts = [self._cuts_within(np.uint64(low), np.uint64(high))]
        parts += [source.within(low, high) for source in self._sources]
        return {name: np.concatenate([part[name] for part in parts]) for name in KINDS}

    def _cuts_within(self, low: np.uint64, high: np.uint64) -> Columns:
        keep = (self._cuts["start"] < high) & (self._cuts["end"] > low)
        return {name: column[keep] for name, column in self._cuts.items()}


class _FromIndex:
    """An index object's writes."""

    def __init__(self, sources: Sources, view: _View, block: IndexBlock) -> None:
        self._sources = sources
        self._view = view
        self._block = block

    def sample(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        rows = [
            ((slot << DISK_SHIFT) + section.low, section.count)
            for _, section in self._block.sections
            for slot, number in self._view.pairs
            if section.disk == number
        ]
        table = np.array(rows, np.uint64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def cell(self, number: int) -> Columns:
        low, high = (int(bound) for bound in self._sources.bounds[number : number + 2])
        return self.within(low, high)

    def within(self, low: int, high: int) -> Columns:
        parts = []
        for slot, disk in sorted(self._view.pairs):
            base = slot << DISK_SHIFT
            first, end = max(low - base, 0), min(high - base, limits.DISK_BYTES_MAX)
            if first < end:
                found = self._block.entries([disk], first, end)
                parts += [_near(part, first, end) for part in found]
        if not parts:
            return self._view.writes(_NONE)
        entries = {name: np.concatenate([part[name] for part in parts]) for name in _NONE}
        if len(parts) > 1:
            order = np.argsort(entries["row"], kind="stable")
            entries = {name: column[order] for name, column in entries.items()}
        return _overlapping(self._view.writes(entries), low, high)

    def close(self) -> None:
        """Nothing is held."""


_NONE: Columns = {
    "row": np.empty(0, np.uint64), "offset": np.empty(0, np.uint64),
    "aux": np.empty(0, np.uint64), "length": np.empty(0, np.uint32),
    "payload_at": np.empty(0, np.uint32), "frame": np.empty(0, np.uint32),
    "disk": np.empty(0, np.uint16), "op": np.empty(0, np.uint8),
}  # fmt: skip


def _near(entries: Columns, low: int, high: int) -> Columns:
    """Of one disk's entries, those that overlap its bytes `low` .. `high`."""
    offset = entries["offset"]
    keep = (offset < np.uint64(high)) & (offset + entries["length"] > np.uint64(low))
    return entries if keep.all() else {name: column[keep] for name, column in entries.items()}


def _overlapping(writes: Columns, low: int, high: int) -> Columns:
    keep = (writes["start"] < np.uint64(high)) & (writes["end"] > np.uint64(low))
    return {name: column[keep] for name, column in writes.items()}


class _FromSegments:
    """The writes of segments that were opened: put into cells when the first is asked for."""

    def __init__(self, sources: Sources, view: _View, where: tuple[Journal, SegmentRun]) -> None:
        self._sources = sources
        self._view = view
        self._journal, run = where
        first, end = run.entry_range()
        self._first, self._end = first, min(end, run.entries_before(view.end_row))
        self._lock = threading.Lock()
        self._runs: Runs | None = None

    def sample(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        step = max(1, (self._end - self._first) // _SAMPLES)
        starts = [batch["start"] for batch in self._batches(step)]
        joined = np.concatenate(starts) if starts else np.empty(0, np.uint64)
        return joined, np.full(len(joined), step, np.uint64)

    def cell(self, number: int) -> Columns:
        with self._lock:
            if self._runs is None:
                self._runs = self._put_into_cells()
        return self._runs.bucket(number)

    def within(self, low: int, high: int) -> Columns:
        # Of whatever disk: few lie there, and `writes` tells them apart.
        base = low >> DISK_SHIFT << DISK_SHIFT
        first, end = np.uint64(low - base), np.uint64(high - base)
        found = []
        for start in range(self._first, self._end, BATCH_ROWS):
            stop = min(self._end, start + BATCH_ROWS)
            offset = self._journal.entry_rows("offset", start, stop)
            near = np.flatnonzero(offset < end)
            length = self._journal.entry_rows("length", start, stop)[near]
            found.append(start + near[offset[near] + length > first])
        rows = np.concatenate(found) if found else np.empty(0, np.int64)
        entries = {name: self._journal.column(name)[rows] for name in _NONE}
        return _overlapping(self._view.writes(entries), low, high)

    def close(self) -> None:
        with self._lock:
            if self._runs is not None:
                self._runs.close()

    def _put_into_cells(self) -> Runs:
        """All writes, by cell; one that reaches over several cells is in each."""
        bounds = self._sources.bounds
        runs = Runs(KINDS, len(bounds) - 1, self._journal.spool_directory)
        inner = bounds[1:-1]
        try:
            for batch in self._batches():
                first = np.searchsorted(inner, batch["start"], "right")
                crosses = np.flatnonzero(batch["end"] > bounds[first + 1])
                if len(crosses):
                    last = first.copy()
                    ends = batch["end"][crosses] - np.uint64(1)
                    last[crosses] = np.searchsorted(inner, ends, "right")
                    spans = last - first + 1
                    index = np.repeat(np.arange(len(first)), spans)
                    within = np.arange(len(index)) - np.repeat(np.cumsum(spans) - spans, spans)
                    batch = {name: column[index] for name, column in batch.items()}
                    first = first[index] + within
                runs.append(first, batch)
        except BaseException:
            runs.close()
            raise
        return runs

    def _batches(self, step: int = 1) -> Iterator[Columns]:
        """Writes in the order of the stream. `step` > 1 gives a sample."""
        for start in range(self._first, self._end, BATCH_ROWS):
            end = min(self._end, start + BATCH_ROWS)
            columns = {name: self._journal.entry_rows(name, start, end)[::step] for name in _NONE}
            batch = self._view.writes(columns)
            if len(batch["start"]):
                yield batch
