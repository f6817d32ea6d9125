"""Random workloads that a tap could have recorded: overlaps, partial blocks, zeroes, trims, FUA,
the last sector."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.model.builder import JournalBuilder
from tests.model.model import DISK, FLUSH, MORE, SECTOR, SYNC_ZERO, TRIM, WRITE, ZERO, Event
from tests.model.sectors import SectorWriter

FUA, TAIL = 1, 4
_LARGE = -1


@dataclass
class Shape:
    """How a workload looks. Sizes in sectors."""

    disks: dict[str, int]
    operations: int = 60
    frame_chance: float = 0.15
    segment_chance: float = 0.05
    resync_chance: float = 0.03
    resize_chance: float = 0.03
    generation_chance: float = 0.01


class Workload:
    """Feeds a builder. Sector contents are self-describing."""

    def __init__(self, builder: JournalBuilder, shape: Shape, rng: random.Random) -> None:
        self.builder = builder
        self.shape = shape
        self.rng = rng
        self.sizes = dict(shape.disks)
        self.names = list(shape.disks)
        self.writers = {name: SectorWriter(number) for number, name in enumerate(self.names)}

    def run(self) -> None:
        """The whole workload, committed to its end."""
        self.builder.generation(self._bytes())
        self._initial_sync()
        for _ in range(self.shape.operations):
            self._step()
            self._cut()
        self.builder.segment()

    def _bytes(self) -> dict[str, int]:
        return {name: self.sizes[name] * SECTOR for name in self.names}

    def _cut(self) -> None:
        chance = self.rng.random()
        if chance < self.shape.segment_chance:
            self.builder.segment()
            if self.rng.random() < 0.2:
                self.builder.claim()
        elif chance < self.shape.frame_chance:
            self.builder.frame()
            if self.rng.random() < 0.2:
                self.builder.connect()

    def _step(self) -> None:
        chance = self.rng.random()
        shape = self.shape
        if chance < shape.resync_chance:
            self._resync()
        elif chance < shape.resync_chance + shape.resize_chance:
            self._resize()
        elif chance < shape.resync_chance + shape.resize_chance + shape.generation_chance:
            self._new_generation()
        else:
            self._request()

    def _range(self, name: str) -> tuple[int, int]:
        """(sector, count): often small and clustered, sometimes the last sector."""
        size = self.sizes[name]
        if self.rng.random() < 0.1:
            return size - 1, 1
        count = min(size, self.rng.choice([1, 1, 2, 3, 7, 8, 8, 16, 33]))
        hot = self.rng.random() < 0.5
        return self.rng.randrange(0, max(1, (size // 4 if hot else size) - count + 1)), count

    def _request(self) -> None:
        name = self.rng.choice(self.names)
        disk = self.names.index(name)
        sector, count = self._range(name)
        kind = self.rng.choices([WRITE, ZERO, TRIM, FLUSH, _LARGE], [60, 12, 12, 6, 6])[0]
        if kind == FLUSH:
            self.builder.flush(disk)
        elif kind in (ZERO, TRIM):
            self.builder.record(Event(kind, disk, sector * SECTOR, count * SECTOR))
        elif kind == _LARGE:
            self._large(disk, name, sector, count)
        else:
            data = self.writers[name].write(sector, count)
            fua = FUA if self.rng.random() < 0.3 else 0
            self.builder.write(disk, sector * SECTOR, data, flags=fua)
        if self.rng.random() < 0.08:
            self.builder.mark()

    def _large(self, disk: int, name: str, sector: int, count: int) -> None:
        """One request in pieces: nothing between them can be chosen."""
        data = self.writers[name].write(sector, count)
        pieces = [data[at : at + 3 * SECTOR] for at in range(0, len(data), 3 * SECTOR)]
        at = sector * SECTOR
        for number, piece in enumerate(pieces):
            flags = (MORE if number < len(pieces) - 1 else 0) | (TAIL if number else 0)
            self.builder.write(disk, at, piece, flags=flags)
            at += len(piece)

    def _initial_sync(self) -> None:
        """Reads every disk in blocks, while the guest goes on writing."""
        builder = self.builder
        for disk, name in enumerate(self.names):
            at = 0
            while at < self.sizes[name]:
                count = min(self.rng.choice([4, 8, 24]), self.sizes[name] - at)
                position = builder.model.seq
                image = builder.model.disks[name].image()[at * SECTOR : (at + count) * SECTOR]
                if self.rng.random() < 0.3:
                    self._request()  # recorded before the block, read after it: it must win
                if any(image) or self.rng.random() < 0.3:
                    if not any(image):
                        image = self.writers[name].write(at, count)
                    builder.sync(disk, at * SECTOR, image, position)
                else:
                    builder.record(
                        Event(SYNC_ZERO, disk, at * SECTOR, count * SECTOR, aux=position)
                    )
                at += count
                self._cut()
        builder.end()

    def _resync(self) -> None:
        """The stream was dirty for a while: some ranges are read again."""
        builder = self.builder
        builder.begin(self._bytes())
        for _ in range(self.rng.randrange(1, 4)):
            name = self.rng.choice(self.names)
            sector, count = self._range(name)
            if self.rng.random() < 0.4:
                # Recorded just before the read began: the block must win.
                recorded = self.writers[name].write(sector, count)
                builder.write(self.names.index(name), sector * SECTOR, recorded)
            position = builder.model.seq
            data = self.writers[name].write(sector, count)
            if self.rng.random() < 0.6:
                self._request()
            self._read_block(self.names.index(name), sector * SECTOR, data, position)
            self._cut()
        builder.end()

    def _read_block(self, disk: int, offset: int, data: bytes, position: int) -> None:
        """What a sync found there: data, or a hole that was made while nothing was recorded."""
        if self.rng.random() < 0.25:
            self.builder.record(Event(SYNC_ZERO, disk, offset, len(data), aux=position))
        else:
            self.builder.sync(disk, offset, data, position)

    def _resize(self) -> None:
        name = self.rng.choice(self.names)
        size = max(8, self.sizes[name] + self.rng.choice([-40, -9, -1, 5, 30]))
        self.sizes[name] = size
        disk = self.names.index(name)
        if self.rng.random() < 0.3:
            body = {"disk": disk, "name": name, "size": size * SECTOR}
            self.builder.record(Event(DISK, body=body))
        else:
            self.builder.resize(disk, size * SECTOR)

    def _new_generation(self) -> None:
        """The ring was lost: a new numbering over what is there, sometimes with the disks
        renumbered."""
        self.rng.shuffle(self.names)
        self.builder.generation(self._bytes(), goes_on=True, cause="ring_lost")
        self._initial_sync()
