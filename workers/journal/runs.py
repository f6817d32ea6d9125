"""Runs of a journal whose segments, or layers, were opened: their columns lie in its spools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workers.journal.columns import FRAMES, Columns

#: Of every record, by row.
ROW_COLUMNS = {"time": "<u8", "flags": "u1"}

#: Of entries, in the order of their rows: the records of segments that were opened.
ENTRY_COLUMNS = {
    "row": "<u8",
    "offset": "<u8",
    "aux": "<u8",
    "length": "<u4",
    "crc": "<u4",
    "payload_length": "<u4",
    "payload_at": "<u4",
    "frame": "<u4",
    "disk": "<u2",
    "op": "u1",
}
FRAME_COLUMNS = {
    "place": "<u8",
    "first_row": "<u8",
    "records": "<u4",
    "payload_offset": "<u8",
    "payload_sealed": "<u4",
    "payload_plain": "<u4",
    "header_at": "<u8",
    "header_length": "<u4",
}


@dataclass(frozen=True)
class FrameInfo:
    """Where a frame lies. Bytes and rows; `number` counts the frames of the whole chain."""

    number: int
    place: int
    generation: int
    first_row: int
    records: int
    payload_offset: int
    payload_sealed: int
    payload_plain: int


@dataclass(frozen=True)
class FrameSums:
    """Where each record's data lies in a frame's payload, and the CRC that the tap took of it."""

    payload_at: NDArray[np.uint32]
    payload_length: NDArray[np.uint32]
    crc: NDArray[np.uint32]


class Spools(Protocol):
    """The journal whose spools hold the columns of what was opened."""

    frames: int

    @property
    def rows(self) -> int:
        """Records so far."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """A column of rows, or of entries."""
        ...

    def frame_column(self, name: str) -> NDArray[Any]:
        """A column of frames."""
        ...


class SegmentRun:
    """Segments that were opened, one after another: a Run. Their rows lie in the journal's
    spools."""

    def __init__(self, journal: Spools, spooled: tuple[int, int, int]) -> None:
        """Begins where the journal ends; `spooled`: rows, frames and entries in its spools."""
        self._journal = journal
        self.first_row, self.first_frame = journal.rows, journal.frames
        self.spooled_row, self.spooled_frame, self._spooled_entry = spooled
        self.rows = 0
        self.frames = 0

    def times(self, first_row: int, end_row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        move = self.spooled_row - self.first_row
        cut = slice(first_row + move, end_row + move)
        return self._journal.column("time")[cut], self._journal.column("flags")[cut]

    def frame(self, number: int) -> dict[str, int]:
        at = number - self.first_frame + self.spooled_frame
        return {name: int(self._journal.frame_column(name)[at]) for name in FRAME_COLUMNS}

    def frame_columns(self, first: int, end: int) -> Columns:
        move = self.spooled_frame - self.first_frame
        return {
            name: self._journal.frame_column(name)[first + move : end + move]
            for name in (*FRAMES, "first_row")
        }

    def frame_at(self, row: int) -> int:
        first_rows = self._journal.frame_column("first_row")
        at = int(np.searchsorted(first_rows, np.uint64(row), "right")) - 1
        return at - self.spooled_frame + self.first_frame

    def entry_range(self) -> tuple[int, int]:
        """Its entries in the journal's columns: first, and one after the last. One for each
        row."""
        return self._spooled_entry, self._spooled_entry + self.rows

    def entries_before(self, end_row: int) -> int:
        """One after the last entry of the rows before that one."""
        first, end = self.entry_range()
        return min(end, first + end_row - self.first_row)

    def entries(self, disks: Iterable[int], low: int, high: int) -> list[Columns]:
        first, end = self.entry_range()
        found = {name: self._journal.column(name)[first:end] for name in ENTRY_COLUMNS}
        keep = np.isin(found["disk"], list(disks)) & (found["offset"] < np.uint64(high))
        keep &= found["offset"] + found["length"] > np.uint64(low)
        return [{name: column[keep] for name, column in found.items()}]


class LayerRun(SegmentRun):
    """The layers that stand for the chain's beginning: each is one row with all that it wrote."""

    def __init__(self, journal: Spools) -> None:
        super().__init__(journal, (0, 0, 0))
        self.first_row = 0
        self.entry_count = 0

    def entry_range(self) -> tuple[int, int]:
        return 0, self.entry_count

    def entries_before(self, end_row: int) -> int:
        """One after the last entry of the rows before that one."""
        return int(np.searchsorted(self._journal.column("row"), np.uint64(end_row)))
