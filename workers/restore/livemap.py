"""The map of a moment while it is made: a range that a guest waits for needs one cell of it."""

from __future__ import annotations

import threading
from pathlib import Path

from workers.journal.mapfile import MapDisk, Pieces, PointMap, load_map
from workers.journal.pitmap import Cells, disks_of, map_seal, saved_path
from workers.journal.points import Point
from workers.journal.reader import Journal


class LiveMap:
    """Answers at once, from cells, until `whole` has made all of the map. For several threads."""

    def __init__(self, journal: Journal, point: Point, cache: Path | None = None) -> None:
        """A saved map from the folder `cache` is used if there is one. UnknownBase, SpoolFull."""
        self._seal = map_seal(journal, point)
        self._path = saved_path(self._seal, cache) if cache is not None else None
        self._lock = threading.Lock()
        self._whole = load_map(self._path, self._seal) if self._path is not None else None
        self._cells = Cells(journal, point) if self._whole is None else None
        sizes = disks_of(journal, point)
        self.disks = [MapDisk(name, size, 0, []) for name, size in sizes]
        self._slots = {name: slot for slot, (name, _) in enumerate(sizes)}
        if self._cells is not None and not self._cells.line.is_whole:
            # Only the whole map tells whether every byte is known.
            self.whole()

    def find(self, disk: MapDisk, offset: int, length: int) -> Pieces:
        """The pieces of a range, cut to it. MapUnusable, SpoolFull, StoreError."""
        whole = self._whole
        if whole is not None:
            return whole.find(whole.disk(disk.name), offset, length)
        assert self._cells is not None
        return self._cells.find(self._slots[disk.name], offset, length)

    def whole(self) -> PointMap:
        """All of it, made now if it is not there; UnknownBase, SpoolFull."""
        with self._lock:
            if self._whole is None:
                assert self._cells is not None
                self._whole = self._cells.write(self._seal, self._path)
            return self._whole

    def close(self) -> None:
        """Give the files back."""
        if self._cells is not None:
            self._cells.close()
        if self._whole is not None:
            self._whole.close()
