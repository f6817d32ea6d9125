"""Images of a point in time made straight from the map, for tests that compare many of them."""

from __future__ import annotations

from functools import lru_cache

from workers.journal.mapfile import PointMap
from workers.journal.pitmap import get_map
from workers.journal.points import Point, resolve
from workers.journal.reader import Journal


class Images:
    """Whole disks of a journal, with its frames opened once."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._payload = lru_cache(maxsize=None)(self._open)

    def _open(self, number: int) -> bytes:
        frame = self.journal.frame(number)
        sealed = self.journal.store.get_range(
            self.journal.object_name(frame.place),
            frame.payload_offset,
            frame.payload_sealed,
        )
        return self.journal.open_payload(frame, sealed)

    def at(self, selector: str) -> dict[str, bytes]:
        """Every disk's bytes at the moment that the selector names."""
        return self.of(resolve(self.journal, selector))

    def of(self, point: Point) -> dict[str, bytes]:
        """Every disk's bytes at a point."""
        found = get_map(self.journal, point)
        try:
            return self.of_map(found)
        finally:
            found.close()

    def of_map(self, found: PointMap) -> dict[str, bytes]:
        """Every disk's bytes from a map."""
        images = [bytearray(disk.size) for disk in found.disks]
        for number, pieces in found.blocks():
            for start, length, frame, at in pieces.tolist():
                data = self._payload(frame)[at : at + length]
                assert len(data) == length
                images[number][start : start + length] = data
        return {disk.name: bytes(image) for disk, image in zip(found.disks, images, strict=True)}
