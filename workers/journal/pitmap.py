"""From a point in time to bytes: for each disk, which record holds each range.

The newest write at or before the point wins, by (order, sequence); a block read by a sync orders by
the position before its read began. The address space of all disks is cut into cells of about as
many writes each; the sources of writes (`sources.py`) give those of a cell, which is painted by
itself (`paint.py`), and what is left are pieces that name a frame and a place in its payload.
Zeroes need no piece. A cell that a guest waits for is painted first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from workers.journal.errors import UnknownBase
from workers.journal.mapfile import (
    PIECE,
    MapSeal,
    MapWriter,
    Pieces,
    PointMap,
    cut_pieces,
    load_map,
)
from workers.journal.paint import Painted, paint
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.journal.sources import DISK_SHIFT, NO_FRAME, Columns, Lineage, Sources, lineage

#: Writes of a cell: its arrays fit a processor's cache, and a guest waits for a cell at most.
CELL_WRITES = 128 * 1024

#: Cells that are painted at once: each takes about 20 MiB.
_PAINTERS = 2

#: So many reads of guests look through all writes for their range. That takes longer than a look
#: into a cell, but no cell has to be made before the first of them.
_RANGES_FIRST = 16

#: Painted cells that are kept for guests while the whole map is made: about 40 MiB.
_CELLS_KEPT = 16

_MAP_CONTEXT = "holdfast point-in-time map v1"


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
    path = saved_path(seal, cache)
    found = load_map(path, seal)
    return found if found is not None else build_map(journal, point, seal, path)


def saved_path(seal: MapSeal, cache: Path) -> Path:
    """Where the map of a point is kept."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cache / f"{blake3(seal.subject.encode()).hexdigest()[:32]}.map"


def build_map(journal: Journal, point: Point, seal: MapSeal, path: Path | None = None) -> PointMap:
    """Make the map of a point, and keep it as `path` if given."""
    with Cells(journal, point) as cells:
        return cells.write(seal, path)


def disks_of(journal: Journal, point: Point) -> list[tuple[str, int]]:
    """Name and size in bytes of each disk of a point, in the order of its map."""
    sizes = journal.timeline.disks_at(point.row)
    return [(journal.timeline.disk_names[disk], sizes[disk]) for disk in sorted(sizes)]


class Cells:
    """The map of a point, cell by cell. For several threads. A context manager."""

    def __init__(self, journal: Journal, point: Point) -> None:
        self._journal = journal
        self.line: Lineage = lineage(journal, point)
        sizes = journal.timeline.disks_at(point.row)
        self.disks = disks_of(journal, point)
        self._sources = Sources(journal, self.line, sizes, point.row)
        self._bounds: NDArray[np.uint64] | None = None
        self._ranges_left = _RANGES_FIRST
        self._lock = threading.Lock()
        self._painted: OrderedDict[int, _Cell] = OrderedDict()

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the temporary files back."""
        self._sources.close()

    @property
    def bounds(self) -> NDArray[np.uint64]:
        """The addresses between cells."""
        with self._lock:
            if self._bounds is None:
                self._bounds = self._sources.cut(CELL_WRITES)
            return self._bounds

    def write(self, seal: MapSeal, path: Path | None = None) -> PointMap:
        """All cells, as a file; UnknownBase, SpoolFull."""
        writer = MapWriter(self.disks, seal, path.parent if path else self._journal.spool_directory)
        covered = 0
        # Sorting lets other threads run: cells are painted side by side, and written in order.
        for cell in _in_order(self._paint, len(self.bounds) - 1):
            covered += cell.covered
            for slot, pieces in cell.by_slot():
                writer.append(slot, pieces)
        if not self.line.is_whole and covered != sum(size for _, size in self.disks):
            raise UnknownBase(
                f"Generation {self.line.root} continues one that is not in"
                " the journal, and some ranges were not read since.",
                hint="Choose a moment of another generation.",
            )
        return writer.finish(path)

    def find(self, slot: int, offset: int, length: int) -> Pieces:
        """The pieces of a range of a disk, cut to it, from the cells that it touches."""
        low = (slot << DISK_SHIFT) + offset
        with self._lock:
            self._ranges_left -= 1
            at_once = self._ranges_left >= 0
        if at_once:
            columns = self._sources.within(low, low + length)
            painted = paint_cell(columns, np.uint64(low), np.uint64(low + length))
            return _pieces_of(columns, painted).pieces
        ends = np.array([low, low + length - 1], np.uint64)
        first, last = (np.searchsorted(self.bounds, ends, "right") - 1).tolist()
        found = []
        for number in range(first, last + 1):
            for own, pieces in self._cell(number).by_slot():
                if own == slot:
                    found.append(cut_pieces(pieces, offset, offset + length))
        return np.concatenate(found) if found else np.empty(0, PIECE)

    def _cell(self, number: int) -> _Cell:
        with self._lock:
            if number in self._painted:
                self._painted.move_to_end(number)
                return self._painted[number]
        cell = self._paint(number)
        with self._lock:
            self._painted[number] = cell
            while len(self._painted) > _CELLS_KEPT:
                self._painted.popitem(last=False)
        return cell

    def _paint(self, number: int) -> _Cell:
        low, high = self.bounds[number], self.bounds[number + 1]
        columns = self._sources.cell(number)
        return _pieces_of(columns, paint_cell(columns, low, high))


def paint_cell(columns: Columns, low: np.uint64, high: np.uint64) -> Painted:
    """The visible pieces of one cell; `winner` is a row of `columns`."""
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
class _Cell:
    """What is left of a cell. `covered` counts bytes that any record covers, zeroes included."""

    covered: int
    slot: NDArray[np.uint64]
    pieces: Pieces

    def by_slot(self) -> Iterator[tuple[int, Pieces]]:
        """The pieces of each disk of the map."""
        edges = [0, *(np.flatnonzero(np.diff(self.slot)) + 1).tolist(), len(self.slot)]
        for first, last in pairwise(edges):
            if last > first:
                yield int(self.slot[first]), self.pieces[first:last]


def _pieces_of(columns: Columns, painted: Painted) -> _Cell:
    covered = int((painted.end - painted.start).sum(dtype=np.uint64))
    frame = columns["frame"][painted.winner]
    kept = np.flatnonzero(frame != NO_FRAME)
    start, end, winner = painted.start[kept], painted.end[kept], painted.winner[kept]
    slot = start >> np.uint64(DISK_SHIFT)
    pieces = np.empty(len(kept), PIECE)
    pieces["start"] = start - (slot << np.uint64(DISK_SHIFT))
    pieces["length"] = end - start
    pieces["frame"] = frame[kept]
    # Modulo 2^32, as a place in a payload is.
    pieces["at"] = start.astype(np.uint32) + columns["base"][winner]
    return _Cell(covered, slot, pieces)


def _in_order(make: Callable[[int], _Cell], count: int) -> Iterator[_Cell]:
    """make(0), make(1), … some of them ahead."""
    with ThreadPoolExecutor(_PAINTERS, "holdfast-map") as pool:
        ahead: deque[Future[_Cell]] = deque()
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
