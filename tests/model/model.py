"""The model: replays records into a dictionary of sectors. Slow, plain, and written from FORMAT.md
alone.

It shares no code with the restore, not even the operations' numbers. A sector holds the order of
the record that won it, (generation, position, sequence), so that a block read by a sync loses to
whatever was written after the read began, however late it arrives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SECTOR = 512
WRITE, ZERO, TRIM, FLUSH, RESIZE, SYNC, SYNC_ZERO = 1, 2, 3, 4, 5, 6, 7
BEGIN, END, MARK, COMMIT, DISK, DETACH, CONFIG = 16, 17, 18, 19, 20, 21, 22
MORE = 2

Order = tuple[int, int, int]


@dataclass(frozen=True)
class Event:
    """One record as the tap would write it. `offset` of RESIZE is the new size in bytes."""

    op: int
    disk: int = 0xFFFF
    offset: int = 0
    length: int = 0
    data: bytes = b""
    aux: int = 0
    flags: int = 0
    body: dict[str, Any] | None = None


@dataclass
class ModelDisk:
    """Sectors by number; what is absent is zero. `cuts` remembers (size, order) of each new
    size."""

    size: int
    sectors: dict[int, tuple[Order, bytes | None]] = field(default_factory=dict)
    cuts: list[tuple[int, Order]] = field(default_factory=list)

    def put(self, sector: int, order: Order, data: bytes | None) -> None:
        """Let `data` (None: zeroes) have the sector if nothing newer has it."""
        for size, when in self.cuts:
            if sector * SECTOR >= size and when > order:
                return
        held = self.sectors.get(sector)
        if held is None or held[0] < order:
            self.sectors[sector] = (order, data)

    def resize(self, size: int, order: Order) -> None:
        """Cut what lies beyond; what is regrown later reads as zeroes."""
        self.size = size
        self.cuts.append((size, order))
        for sector in [s for s in self.sectors if s * SECTOR >= size]:
            self.put(sector, order, None)

    def image(self) -> bytes:
        """The whole disk."""
        out = bytearray(self.size)
        for sector, (_, data) in self.sectors.items():
            at = sector * SECTOR
            if data is not None and at < self.size:
                out[at : at + SECTOR] = data
        return bytes(out)


class Model:
    """Disks by name. Feed it every record in the order of the stream; look at any moment."""

    def __init__(self) -> None:
        self.disks: dict[str, ModelDisk] = {}
        self.numbers: dict[int, str] = {}
        self.generation = -1
        self.seq = 0

    def start_generation(self, keep: bool) -> None:
        """A new numbering; `keep` says whether it goes on from what is there."""
        self.generation += 1
        self.seq = 0
        if not keep:
            self.disks.clear()
            self.numbers.clear()

    def apply(self, event: Event) -> int:
        """Take the next record; return its sequence."""
        self.seq += 1
        now: Order = (self.generation, self.seq, self.seq)
        if event.op in (WRITE, SYNC, ZERO, TRIM, SYNC_ZERO):
            is_sync = event.op in (SYNC, SYNC_ZERO)
            order = (self.generation, event.aux, self.seq) if is_sync else now
            disk = self.disks[self.numbers[event.disk]]
            has_data = event.op in (WRITE, SYNC)
            for at in range(0, event.length, SECTOR):
                data = event.data[at : at + SECTOR] if has_data else None
                disk.put((event.offset + at) // SECTOR, order, data)
        elif event.op == RESIZE:
            self.disks[self.numbers[event.disk]].resize(event.offset, now)
        elif event.op in (BEGIN, DISK, DETACH):
            self._describe(event, now)
        return self.seq

    def _describe(self, event: Event, now: Order) -> None:
        assert event.body is not None
        if event.op == DETACH:
            del self.disks[event.body["name"]]
            del self.numbers[event.body["disk"]]
            return
        named = event.body["disks"] if event.op == BEGIN else [event.body]
        for entry in named:
            self.numbers[entry["disk"]] = entry["name"]
            disk = self.disks.setdefault(entry["name"], ModelDisk(entry["size"]))
            if disk.size != entry["size"]:
                disk.resize(entry["size"], now)
        if event.op == BEGIN:
            self.numbers = {entry["disk"]: entry["name"] for entry in named}
            self.disks = {name: self.disks[name] for name in self.numbers.values()}

    def images(self) -> dict[str, bytes]:
        """Every disk's bytes at this moment."""
        return {name: disk.image() for name, disk in self.disks.items()}


def replay(events: Iterable[Event]) -> Model:
    """A model that has seen `events` as one generation."""
    model = Model()
    model.start_generation(keep=False)
    for event in events:
        model.apply(event)
    return model
