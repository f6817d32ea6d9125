"""From a point in time to bytes: for each disk, which record holds each range.

The newest write at or before the point wins, by (order, sequence); a block read by a sync orders by
the position before its read began. Records are put into parts of the address space that are small
enough to sort in the processor's cache, each part is painted by itself (`paint.py`), and what is
left are pieces that name a frame and a place in its payload. Zeroes need no piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from host_agent.wire import limits
from host_agent.wire.record import Op
from workers.journal.errors import UnknownBase
from workers.journal.mapfile import PIECE, MapSeal, MapWriter, Pieces, PointMap, load_map
from workers.journal.paint import Painted, paint
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.journal.spool import Runs
from workers.journal.timeline import DiskChange, Generation

#: Writes of a part: its arrays fit a processor's cache.
PART_RECORDS = 256 * 1024

#: Rows that are looked at together while they are put into parts.
BATCH_ROWS = 512 * 1024

#: Parts that are painted at once: each takes about 30 MiB.
_PAINTERS = 2

_SAMPLES = 256 * 1024
_PARTS_MAX = 1 << 16
#: Each disk has its own piece of one address space: 2^46 bytes, the largest disk.
_DISK_SHIFT = np.uint64(limits.DISK_BYTES_MAX.bit_length() - 1)
_MAP_CONTEXT = "holdfast point-in-time map v1"

_WRITES = np.zeros(256, bool)
_WRITES[[Op.WRITE, Op.SYNC, Op.ZERO, Op.TRIM, Op.SYNC_ZERO]] = True
_DATA = np.zeros(256, bool)
_DATA[[Op.WRITE, Op.SYNC]] = True
_SYNC = np.zeros(256, bool)
_SYNC[[Op.SYNC, Op.SYNC_ZERO]] = True


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
        raised += stretch.end_row - stretch.first_row
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


def map_seal(journal: Journal, point: Point) -> MapSeal:
    """What binds a saved map to this point of this journal."""
    generation = journal.timeline.generations[point.generation]
    frame = journal.frame_of(point.row)
    subject = f"{journal.identity} {generation.hex} {point.seq} {journal.frames_hash(frame).hex()}"
    key = blake3(journal.keys.data_key(generation.name), derive_key_context=_MAP_CONTEXT).digest()
    return MapSeal(subject, key)


def get_map(journal: Journal, point: Point, cache: Path | None = None) -> PointMap:
    """The map of a point: a saved one from the folder `cache`, or made now and saved there.

    UnknownBase, SpoolFull.
    """
    seal = map_seal(journal, point)
    if cache is None:
        return build_map(journal, point, seal)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = cache / f"{blake3(seal.subject.encode()).hexdigest()[:32]}.map"
    found = load_map(path, seal)
    return found if found is not None else build_map(journal, point, seal, path)


def build_map(journal: Journal, point: Point, seal: MapSeal, path: Path | None = None) -> PointMap:
    """Make the map of a point, and keep it as `path` if given."""
    line = lineage(journal, point)
    sizes = journal.timeline.disks_at(point.row)
    names = [(journal.timeline.disk_names[disk], size) for disk, size in sorted(sizes.items())]
    plan = _Plan(journal, line, sizes)
    writer = MapWriter(names, seal, path.parent if path else journal.spool_directory)
    parts = plan.parts()
    covered = 0

    def paint_number(number: int) -> _Part:
        columns = parts.bucket(number)
        painted = _paint_part(columns, plan.bounds[number], plan.bounds[number + 1])
        return _pieces_of(journal, columns["entry"], painted)

    try:
        # Sorting lets other threads run: parts are painted side by side, and written in order.
        for part in _in_order(paint_number, len(plan.bounds) - 1):
            covered += part.covered
            for slot, pieces in part.by_slot():
                writer.append(slot, pieces)
    finally:
        parts.close()
    if not line.is_whole and covered != sum(sizes.values()):
        raise UnknownBase(
            f"Generation {line.root} continues one that is not in"
            " the journal, and some ranges were not read since.",
            hint="Choose a moment of another generation.",
        )
    return writer.finish(path)


class _Plan:
    """How the rows of a lineage fall into parts of one address space over all disks."""

    def __init__(self, journal: Journal, line: Lineage, sizes: dict[int, int]) -> None:
        self._journal = journal
        self._line = line
        # Disks of the stream to their order in the map; -1 for those that left before the point.
        self._slots = np.full(len(journal.timeline.disk_names) + 1, -1, np.int32)
        self._slots[sorted(sizes)] = np.arange(len(sizes))
        self._sizes = np.array([size for _, size in sorted(sizes.items())] or [0], np.uint64)
        self.bounds = self._find_bounds(len(sizes))

    def _find_bounds(self, disks: int) -> NDArray[np.uint64]:
        """Addresses between parts, by the quantiles of a sample of the writes' starts."""
        spans = (self._entries(stretch) for stretch in self._line.stretches)
        rows = sum(last - first for first, last in spans)
        parts = min(_PARTS_MAX - 1, max(1, -(-rows // PART_RECORDS)))
        end = np.uint64(max(1, disks) << int(_DISK_SHIFT))
        inner = np.empty(0, np.uint64)
        if parts > 1:
            step = max(1, rows // _SAMPLES)
            starts = np.concatenate([b["start"] for b in self._batches(step)])
            if len(starts):
                starts.sort()
                inner = np.unique(starts[np.arange(1, parts) * len(starts) // parts])
                inner = inner[inner > 0]
        return np.concatenate([np.zeros(1, np.uint64), inner, np.array([end], np.uint64)])

    def parts(self) -> Runs:
        """All writes, by part; one that reaches over several parts is in each."""
        kinds = {"start": "<u8", "end": "<u8", "key": "<u8", "entry": "<u8"}
        runs = Runs(kinds, len(self.bounds) - 1, self._journal.spool_directory)
        inner = self.bounds[1:-1]
        for batch in self._batches():
            first = np.searchsorted(inner, batch["start"], "right")
            crosses = np.flatnonzero(batch["end"] > self.bounds[first + 1])
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
        return runs

    def _entries(self, stretch: Stretch) -> tuple[int, int]:
        """The journal's entries of a stretch: first, and one after the last."""
        return self._journal.entries(stretch.first_row, stretch.end_row)

    def _batches(self, step: int = 1) -> Iterator[dict[str, NDArray[np.uint64]]]:
        """Writes in the order of the stream: address, order and entry. `step` > 1 gives a
        sample."""
        tables = NumberTables(self._journal.timeline.changes, self._slots)
        for stretch in self._line.stretches:
            first, end = self._entries(stretch)
            for start in range(first, end, BATCH_ROWS * step):
                stop = min(end, start + BATCH_ROWS * step)
                batch = self._batch(tables, stretch, range(start, stop, step))
                if len(batch["start"]):
                    yield batch

    def _batch(
        self, tables: NumberTables, stretch: Stretch, entries: range
    ) -> dict[str, NDArray[np.uint64]]:
        journal, cut = self._journal, slice(entries.start, entries.stop, entries.step)
        op = journal.column("op")[cut]
        index = np.flatnonzero(_WRITES[op])
        entry = np.uint64(entries.start) + index.astype(np.uint64) * np.uint64(entries.step)
        row = journal.column("row")[cut][index].astype(np.uint64)
        slot = tables.slots(row, journal.column("disk")[cut][index])
        offset = journal.column("offset")[cut][index].astype(np.uint64)
        end = offset + journal.column("length")[cut][index]
        position = row - np.uint64(stretch.first_row) + np.uint64(1)
        skipped = np.uint64(stretch.skipped)
        aux = np.maximum(journal.column("aux")[cut][index], skipped) - skipped
        key = np.where(_SYNC[op[index]], aux, position) + np.uint64(stretch.raised)
        batch = {"start": offset, "end": end, "key": key, "entry": entry}
        slot, batch = self._with_cuts(stretch, entries, slot, batch)
        return self._clip(slot, batch)

    def _with_cuts(
        self,
        stretch: Stretch,
        entries: range,
        slot: NDArray[np.int32],
        batch: dict[str, NDArray[np.uint64]],
    ) -> tuple[NDArray[np.int32], dict[str, NDArray[np.uint64]]]:
        """Add what a new size or a disk's leaving gave up: zeroes from there to the end of all
        disks."""
        rows = self._journal.column("row")
        low, high = int(rows[entries.start]), int(rows[entries.stop - 1])
        # Each change has an entry of its own, which no other entry of its row can follow.
        changes = [c for c in self._journal.timeline.changes if c.cut and low <= c.row <= high]
        if not changes:
            return slot, batch
        row = np.array([c.row for c in changes], np.uint64)
        entry = np.searchsorted(rows, row).astype(np.uint64)
        position = row - np.uint64(stretch.first_row) + np.uint64(1 + stretch.raised)
        if stretch.begins:
            # The first BEGIN describes what lies under its generation: it loses to all its records.
            position -= row == np.uint64(stretch.first_row)
        added = {
            "start": np.array([c.size or 0 for c in changes], np.uint64),
            "end": np.full(len(changes), limits.DISK_BYTES_MAX, np.uint64),
            "key": position,
            "entry": entry,
        }
        order = np.argsort(np.concatenate([batch["entry"], entry]), kind="stable")
        slots = np.concatenate([slot, self._slots[[c.disk for c in changes]]])[order]
        return slots, {n: np.concatenate([batch[n], added[n]])[order] for n in batch}

    def _clip(
        self, slot: NDArray[np.int32], batch: dict[str, NDArray[np.uint64]]
    ) -> dict[str, NDArray[np.uint64]]:
        """Only what lies on disks of the map and inside their sizes, at addresses over all
        disks."""
        size = self._sizes[np.maximum(slot, 0)]
        keep = np.flatnonzero((slot >= 0) & (batch["start"] < size))
        base = slot[keep].astype(np.uint64) << _DISK_SHIFT
        end = np.minimum(batch["end"][keep], size[keep])
        return {
            "start": base + batch["start"][keep],
            "end": base + end,
            "key": batch["key"][keep],
            "entry": batch["entry"][keep],
        }


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


def _paint_part(columns: dict[str, NDArray[np.uint64]], low: np.uint64, high: np.uint64) -> Painted:
    """The visible pieces of one part; `winner` is a row of `columns`."""
    start = np.maximum(columns["start"], low)
    end = np.minimum(columns["end"], high)
    key = columns["key"]
    if not (key[1:] < key[:-1]).any():
        return paint(start, end)
    # Equal orders keep the sequence's order: the rows come in it.
    order = np.argsort(key, kind="stable")
    painted = paint(start[order], end[order])
    return Painted(painted.start, painted.end, order[painted.winner].astype(np.int32))


@dataclass(frozen=True)
class _Part:
    """What is left of a part. `covered` counts bytes that any record covers, zeroes included."""

    covered: int
    slot: NDArray[np.uint64]
    pieces: Pieces

    def by_slot(self) -> Iterator[tuple[int, Pieces]]:
        """The pieces of each disk of the map."""
        edges = [0, *(np.flatnonzero(np.diff(self.slot)) + 1).tolist(), len(self.slot)]
        for first, last in pairwise(edges):
            if last > first:
                yield int(self.slot[first]), self.pieces[first:last]


def _pieces_of(journal: Journal, entries: NDArray[np.uint64], painted: Painted) -> _Part:
    covered = int((painted.end - painted.start).sum(dtype=np.uint64))
    entry = entries[painted.winner]
    kept = np.flatnonzero(_DATA[journal.column("op")[entry]])
    entry, start, end = entry[kept], painted.start[kept], painted.end[kept]
    slot = start >> _DISK_SHIFT
    pieces = np.empty(len(entry), PIECE)
    pieces["start"] = start - (slot << _DISK_SHIFT)
    pieces["length"] = end - start
    pieces["frame"] = journal.column("frame")[entry]
    within = pieces["start"] - journal.column("offset")[entry]
    pieces["at"] = journal.column("payload_at")[entry] + within
    return _Part(covered, slot, pieces)


def _in_order(make: Callable[[int], _Part], count: int) -> Iterator[_Part]:
    """make(0), make(1), … some of them ahead."""
    with ThreadPoolExecutor(_PAINTERS, "holdfast-map") as pool:
        ahead: deque[Future[_Part]] = deque()
        try:
            for number in range(count):
                ahead.append(pool.submit(make, number))
                if len(ahead) > _PAINTERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
