"""The map turned round: which pieces each frame holds, frame after frame, each frame fetched
once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.journal.columns import distinct
from workers.journal.mapfile import PointMap
from workers.journal.reader import FrameInfo, Journal
from workers.journal.spool import Runs
from workers.restore.fetch import fetch_all

_KINDS = {"disk": "<u2", "start": "<u8", "length": "<u4", "frame": "<u4", "at": "<u4"}
_BUCKETS_MAX = 4096
_FRAMES_EACH = 64

Columns = dict[str, NDArray[np.uint64]]


class FramePieces:
    """Iterates over (frame, its data verified, its pieces by disk and address). A context
    manager."""

    def __init__(self, journal: Journal, found: PointMap) -> None:
        self._journal = journal
        each = max(_FRAMES_EACH, -(-journal.frames // _BUCKETS_MAX))
        self._runs = Runs(_KINDS, max(1, -(-journal.frames // each)), journal.spool_directory)
        try:
            for disk, pieces in found.blocks():
                columns = {name: pieces[name] for name in ("start", "length", "frame", "at")}
                columns["disk"] = np.full(len(pieces), disk, np.uint16)
                self._runs.append(pieces["frame"] // np.uint32(each), columns)
        except BaseException:
            self._runs.close()
            raise

    def __enter__(self) -> FramePieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._runs.close()

    def __iter__(self) -> Iterator[tuple[FrameInfo, bytes, Columns]]:
        wanted: list[Columns] = []
        for frame, plain in fetch_all(self._journal, self._numbers(wanted)):
            while int(wanted[0]["frame"][-1]) < frame.number:
                wanted.pop(0)
            columns = wanted[0]
            first, last = np.searchsorted(columns["frame"], [frame.number, frame.number + 1])
            yield frame, plain, {name: column[first:last] for name, column in columns.items()}

    def _numbers(self, wanted: list[Columns]) -> Iterator[int]:
        """Frames that hold anything, ascending; their pieces are in `wanted` before they are
        named."""
        for number in range(self._runs.buckets):
            columns = self._runs.bucket(number)
            order = np.lexsort((columns["start"], columns["disk"], columns["frame"]))
            columns = {name: column[order] for name, column in columns.items()}
            if len(order):
                wanted.append(columns)
                yield from distinct(columns["frame"]).tolist()
