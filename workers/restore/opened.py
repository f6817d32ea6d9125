"""A moment of a stream, opened to be read by ranges. Calls block; several threads may make them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from host_agent.wire import limits
from host_agent.wire.keys import JournalKey
from host_agent.wire.names import Identity
from workers.journal.mapfile import MapDisk, PointMap
from workers.journal.moment import open_at
from workers.journal.pitmap import get_map
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.restore.errors import NoSuchDisk
from workers.restore.fetch import FrameCache
from workers.storage.port import ObjectStore

#: Zeroes between data that are shorter than this are sent along: a range has its price too.
GAP_BYTES = 64 * limits.KIB


@dataclass(frozen=True)
class Listed:
    """Ranges (offset, length) of a disk that are not all zeroes, and where the list goes on."""

    ranges: list[tuple[int, int]]
    next: int | None


class OpenedMoment:
    """Made by `open_moment`. Closed by who opened it, when nobody reads any more."""

    def __init__(self, journal: Journal, point: Point, found: PointMap) -> None:
        self.point = point
        self._journal, self._map = journal, found
        self._frames = FrameCache(journal)

    @property
    def disks(self) -> list[MapDisk]:
        """All disks of the moment."""
        return self._map.disks

    @property
    def unreadable(self) -> list[tuple[str, int, int]]:
        """What the source could not read: (disk, offset, length)."""
        names = self._journal.timeline.disk_names
        return [(names[disk], at, length) for disk, at, length in self.point.damaged_ranges]

    def list_ranges(self, name: str, offset: int) -> Listed:
        """Where the disk has data from `offset` on; NoSuchDisk, MapUnusable."""
        ranges: list[tuple[int, int]] = []
        for start, stop in self._merged(self._disk(name), offset):
            if len(ranges) == limits.RESTORE_RANGES_MAX:
                return Listed(ranges, start)
            ranges.append((start, stop - start))
        return Listed(ranges, None)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A range of a disk; NoSuchDisk, JournalMoved, PayloadDamaged, StoreUnavailable."""
        disk = self._disk(name)
        if offset + length > disk.size:
            raise NoSuchDisk(f"{name} has {disk.size} bytes: nothing lies at {offset + length}.")
        data = bytearray(length)
        for start, size, frame, at in self._map.find(disk, offset, length).tolist():
            place = start - offset
            data[place : place + size] = memoryview(self._frames.get(frame))[at : at + size]
        return bytes(data)

    def close(self) -> None:
        """Give files and keys back."""
        self._map.close()
        self._journal.close()

    def _disk(self, name: str) -> MapDisk:
        for disk in self._map.disks:
            if disk.name == name:
                return disk
        raise NoSuchDisk(f"The moment has no disk {name!r:.80}.")

    def _merged(self, disk: MapDisk, offset: int) -> Iterator[tuple[int, int]]:
        """Ascending (start, stop), cut to begin at `offset`."""
        low = high = -1
        for block in disk.blocks:
            if block.end <= offset:
                continue
            pieces = self._map.pieces(block)
            starts = pieces["start"].astype(np.int64)
            stops = starts + pieces["length"].astype(np.int64)
            breaks = np.flatnonzero(starts[1:] - stops[:-1] >= GAP_BYTES) + 1
            begins = starts[np.concatenate(([0], breaks))].tolist()
            ends = stops[np.concatenate((breaks - 1, [len(stops) - 1]))].tolist()
            for start, stop in zip(begins, ends, strict=True):
                if low >= 0 and start - high < GAP_BYTES:
                    high = stop
                    continue
                if high > offset:
                    yield max(low, offset), high
                low, high = start, stop
        if high > offset:
            yield max(low, offset), high


def open_moment(
    store: ObjectStore, identity: Identity, key: JournalKey, selector: str
) -> OpenedMoment:
    """Open a stream's journal where the selector says. Raises what `open_at` and `get_map` do."""
    journal, point = open_at(store, identity, key, selector)
    try:
        return OpenedMoment(journal, point, get_map(journal, point))
    except BaseException:
        journal.close()
        raise
