"""What an index object stands for, read when it is asked for, by parts of the address space.

A section that turns out to be damaged or missing is replaced by the objects below it and by the
segments that it stands for: an index object saves requests and decides nothing.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.errors import WireError
from host_agent.wire.names import Identity, index_name
from host_agent.wire.record import RECORD, Records
from workers.journal import columns
from workers.journal.chain import DAMAGE
from workers.journal.columns import Columns
from workers.journal.indexfile import IndexHead, Kind, OpenIndex, Section, Summary
from workers.journal.marks import MarkColumns
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: Decoded sections that a block keeps: neighbouring parts of the address space share one.
_KEPT = 3

#: Frames' sections are small, and looked at again and again.
_KEPT_FRAMES = 64

T = TypeVar("T")


class Run(Protocol):
    """Rows and frames of a journal that follow one another. Both are numbered through the chain."""

    first_row: int
    rows: int
    first_frame: int
    frames: int

    def times(self, first_row: int, end_row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Times and flags of some of its rows."""
        ...

    def frame(self, number: int) -> dict[str, int]:
        """A frame's columns."""
        ...

    def frame_columns(self, first: int, end: int) -> Columns:
        """The columns of frames, and their first rows."""
        ...

    def frame_at(self, row: int) -> int:
        """The number of the frame that holds a row."""
        ...

    def entries(self, disks: Iterable[int], low: int, high: int) -> list[Columns]:
        """Writes that overlap bytes `low` .. `high` of disks by number, and others.

        Each part is in the order of its rows.
        """
        ...


class Instead(Protocol):
    """A journal that was opened without a certain index object."""

    runs: list[Run]

    def marks_between(self, first_row: int, end_row: int) -> MarkColumns:
        """Its markers, rows counted from the first."""
        ...

    def close(self) -> None:
        """Give its files back."""
        ...


@dataclass(frozen=True)
class FoundIndex:
    """An index object as a store gave it: its summary, and its first bytes."""

    index: OpenIndex
    front: bytes
    store: ObjectStore
    identity: Identity

    @property
    def head(self) -> IndexHead:
        """What it stands for."""
        return self.index.head

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the object; ObjectMissing, ObjectTooShort."""
        if start + length <= len(self.front):
            return self.front[start : start + length]
        name = index_name(self.identity, self.head.level, self.head.number)
        return self.store.get_range(name, start, length)


class IndexBlock:
    """An index object in its place: a Run. For several threads."""

    def __init__(
        self, found: FoundIndex, first: tuple[int, int], instead: Callable[[], Instead]
    ) -> None:
        """`first` are its first row and frame; `instead` opens the journal without it."""
        self.head = found.head
        self.summary: Summary = found.index.summary
        self.first_row, self.first_frame = first
        self.rows = self.summary.records
        self.frames = self.summary.frames
        self._found = found
        self._reopen = instead
        self._lock = threading.RLock()
        self._kept: dict[int, OrderedDict[int, Columns]] = {kind: OrderedDict() for kind in Kind}
        self._instead: Instead | None = None
        self._by_kind: dict[int, list[tuple[int, Section]]] = {kind: [] for kind in Kind}
        for number, section in enumerate(self.summary.sections):
            if section.kind in self._by_kind:
                self._by_kind[section.kind].append((number, section))

    @property
    def sections(self) -> list[tuple[int, Section]]:
        """The sections of entries: how its writes lie in the address space."""
        return self._by_kind[Kind.ENTRIES]

    @property
    def newest_time(self) -> int:
        """The time of its last row, nanoseconds UTC."""
        return self.head.newest.time_newest

    def ends_at(self, row: int) -> bool:
        """Whether its last row is the one before."""
        return row == self.first_row + self.rows

    def close(self) -> None:
        """Give back what was opened instead."""
        if self._instead is not None:
            self._instead.close()

    # -- what it holds

    def times(self, first_row: int, end_row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._or_else(
            lambda: self._rows_of(first_row - self.first_row, end_row - self.first_row),
            lambda: self._times_instead(first_row, end_row),
        )

    def frame(self, number: int) -> dict[str, int]:
        return self._or_else(
            lambda: self._frame_of(number - self.first_frame),
            lambda: run_of_frame(self._runs(), number).frame(number),
        )

    def frame_columns(self, first: int, end: int) -> Columns:
        return self._or_else(
            lambda: self._frames_of(first - self.first_frame, end - self.first_frame),
            lambda: _joined(
                [
                    run.frame_columns(
                        max(first, run.first_frame), min(end, run.first_frame + run.frames)
                    )
                    for run in self._runs()
                    if run.first_frame < end and run.first_frame + run.frames > first
                ]
            ),
        )

    def frame_at(self, row: int) -> int:
        return self._or_else(
            lambda: self._frame_at(row - self.first_row),
            lambda: run_of_row(self._runs(), row).frame_at(row),
        )

    def entries(self, disks: Iterable[int], low: int, high: int) -> list[Columns]:
        wanted = set(disks)
        chosen = [
            (number, section) for number, section in self.sections
            if section.disk in wanted and section.low < high and section.high > low
        ]  # fmt: skip
        return self._or_else(
            lambda: self._entries_of(chosen), lambda: self._entries_instead(wanted, low, high)
        )

    def marks(self) -> MarkColumns:
        """Its markers, by the journal's rows."""

        def whole() -> MarkColumns:
            numbers = [number for number, _ in self._by_kind[Kind.MARKS]]
            return MarkColumns.joined([MarkColumns.unpacked(self._open(n)) for n in numbers])

        def others() -> MarkColumns:
            return self._other().marks_between(self.first_row, self.first_row + self.rows)

        return self._or_else(whole, others).raised(self.first_row)

    def since_anchor(self) -> Records:
        """The records after the anchor of the record hash. Raises what DAMAGE names."""
        number, _ = self._by_kind[Kind.ANCHOR][0]
        return np.frombuffer(self._open(number), RECORD)

    # -- sections

    def _or_else(self, own: Callable[[], T], others: Callable[[], T]) -> T:
        if self._instead is None:
            try:
                return own()
            except (ObjectMissing, *DAMAGE):
                pass
        return others()

    def _open(self, number: int) -> bytes:
        return self._found.index.open(number, self._found.read)

    def _decoded(self, kind: Kind, number: int, kinds: columns.Kinds) -> Columns:
        """A section's columns, kept for a while."""
        kept = self._kept[kind]
        with self._lock:
            if number in kept:
                kept.move_to_end(number)
                return kept[number]
        found = columns.unpack(self._open(number), kinds, self.summary.sections[number].count)
        self._keep(kind, number, found)
        return found

    def _keep(self, kind: Kind, number: int, found: Columns) -> None:
        with self._lock:
            self._kept[kind][number] = found
            while len(self._kept[kind]) > (_KEPT_FRAMES if kind == Kind.FRAMES else _KEPT):
                self._kept[kind].popitem(last=False)

    def _rows_of(self, first: int, end: int) -> tuple[NDArray[Any], NDArray[Any]]:
        times, flags = [], []
        for number, section in self._by_kind[Kind.ROWS]:
            if section.low < end and section.low + section.count > first:
                found = self._decoded(Kind.ROWS, number, columns.ROWS)
                cut = slice(max(0, first - section.low), end - section.low)
                times.append(found["time"][cut])
                flags.append(found["flags"][cut])
        return np.concatenate(times), np.concatenate(flags)

    def _frame_section(self, number: int, section: Section) -> Columns:
        found = self._decoded(Kind.FRAMES, number, columns.FRAMES)
        if "first_row" not in found:
            records = found["records"].astype(np.uint64)
            found["first_row"] = np.cumsum(records) - records + np.uint64(section.high)
        return found

    def _frame_of(self, local: int) -> dict[str, int]:
        for number, section in self._by_kind[Kind.FRAMES]:
            if section.low <= local < section.low + section.count:
                found = self._frame_section(number, section)
                values = {name: int(col[local - section.low]) for name, col in found.items()}
                values["first_row"] += self.first_row
                return values
        raise WireError("The index object names a frame that it does not hold.")

    def _frames_of(self, first: int, end: int) -> Columns:
        parts = []
        for number, section in self._by_kind[Kind.FRAMES]:
            if section.low < end and section.low + section.count > first:
                found = self._frame_section(number, section)
                cut = slice(max(0, first - section.low), end - section.low)
                parts.append({name: column[cut] for name, column in found.items()})
        joined = _joined(parts)
        return {**joined, "first_row": joined["first_row"] + np.uint64(self.first_row)}

    def _frame_at(self, local: int) -> int:
        parts = [(n, s) for n, s in self._by_kind[Kind.FRAMES] if s.high <= local]
        if not parts:
            raise WireError("The index object has no frame of one of its rows.")
        number, section = parts[-1]
        found = self._frame_section(number, section)
        at = int(np.searchsorted(found["first_row"], np.uint64(local), "right")) - 1
        return self.first_frame + section.low + at

    def _entries_of(self, chosen: list[tuple[int, Section]]) -> list[Columns]:
        self._read_along([number for number, _ in chosen])
        parts = []
        for number, section in chosen:
            found = self._decoded(Kind.ENTRIES, number, columns.ENTRIES)
            parts.append(
                {
                    **found,
                    "disk": np.full(section.count, section.disk, np.uint16),
                    "row": found["row"] + np.uint64(self.first_row),
                    "frame": found["frame"] + np.uint32(self.first_frame),
                }
            )
        return parts

    def _read_along(self, numbers: list[int]) -> None:
        """Sections that lie together are one request."""
        with self._lock:
            lacking = [n for n in numbers if n not in self._kept[Kind.ENTRIES]]
        if not 2 <= len(lacking) <= _KEPT or lacking[-1] - lacking[0] != len(lacking) - 1:
            return
        start, end = self._found.index.span(lacking)
        data = memoryview(self._found.read(start, end - start))
        for number in lacking:
            count = self.summary.sections[number].count
            plain = self._found.index.open(number, lambda at, n: data[at - start : at - start + n])
            self._keep(Kind.ENTRIES, number, columns.unpack(plain, columns.ENTRIES, count))

    # -- the journal without it

    def _other(self) -> Instead:
        with self._lock:
            if self._instead is None:
                self._instead = self._reopen()
            return self._instead

    def _runs(self) -> list[Run]:
        end = self.first_row + self.rows
        return [
            run for run in self._other().runs
            if run.first_row < end and run.first_row + run.rows > self.first_row
        ]  # fmt: skip

    def _times_instead(self, first_row: int, end_row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        parts = [
            run.times(max(first_row, run.first_row), min(end_row, run.first_row + run.rows))
            for run in self._runs()
            if run.first_row < end_row and run.first_row + run.rows > first_row
        ]
        times, flags = zip(*parts, strict=True)
        return np.concatenate(times), np.concatenate(flags)

    def _entries_instead(self, disks: set[int], low: int, high: int) -> list[Columns]:
        found = []
        for run in self._runs():
            for part in run.entries(disks, low, high):
                row = part["row"]
                keep = (row >= np.uint64(self.first_row)) & (
                    row < np.uint64(self.first_row + self.rows)
                )
                found.append({name: column[keep] for name, column in part.items()})
        return found


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_of_row(runs: Sequence[Run], row: int) -> Run:
    """The run that holds a row."""
    return runs[bisect_right(runs, row, key=lambda run: run.first_row) - 1]


def run_of_frame(runs: Sequence[Run], number: int) -> Run:
    """The run that holds a frame."""
    return runs[bisect_right(runs, number, key=lambda run: run.first_frame) - 1]
