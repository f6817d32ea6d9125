"""What truly happened on a host's disks, and what of it may be restored: the judge's only source.

Written by the tap's model as things happen, in the order in which the disks' contents changed. A
point (generation, sequence) stands for so many entries; its image is those entries replayed. No
record of the stream is looked at for it: neither syncs nor their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Images = tuple[bytes, ...]
Point = tuple[bytes, int]


@dataclass(frozen=True)
class Change:
    """A write at an instant (seconds); `image` instead: all of the disk became this."""

    at: float
    disk: int
    offset: int
    data: bytes
    is_image: bool = False


@dataclass
class Generation:
    """`counts[seq - 1]`: entries before that position; -1 where the disk never looked like it."""

    name: bytes
    predecessor: bytes
    counts: list[int] = field(default_factory=list)
    freed: int = 0


class History:
    """Of one host's group."""

    def __init__(self, sizes: list[int], now: Callable[[], float]) -> None:
        self.sizes = sizes
        self.now = now
        self.changes: list[Change] = []
        self.generations: dict[bytes, Generation] = {}
        self.checkpoints: dict[str, Point] = {}

    def fork(self) -> History:
        """As a copy of the host has it from here on."""
        twin = History(self.sizes, self.now)
        twin.changes = list(self.changes)
        twin.checkpoints = dict(self.checkpoints)
        for name, one in self.generations.items():
            twin.generations[name] = Generation(name, one.predecessor, list(one.counts), one.freed)
        return twin

    # --- the tap writes

    def applied(self, disk: int, offset: int, data: bytes) -> int:
        """A write that a guest is told of; its number."""
        self.changes.append(Change(self.now(), disk, offset, data))
        return len(self.changes) - 1

    def lost(self, disk: int, offset: int, data: bytes) -> None:
        """The disk changed and no guest was told."""
        self.changes.append(Change(self.now(), disk, offset, data))

    def became(self, disk: int, image: bytes) -> None:
        """What is left of a disk after a power loss."""
        self.changes.append(Change(self.now(), disk, 0, image, is_image=True))

    def begin_generation(self, name: bytes, predecessor: bytes) -> None:
        """A new numbering."""
        self.generations[name] = Generation(name, predecessor)

    def recorded(self, generation: bytes, seq: int, is_point: bool, index: int | None) -> None:
        """The next position of a generation."""
        counts = self.generations[generation].counts
        assert len(counts) == seq - 1, "the tap left a gap"
        del index
        counts.append(len(self.changes) if is_point else -1)

    def marked(self, checkpoint: str, generation: bytes, seq: int) -> None:
        """A checkpoint's marker."""
        self.checkpoints[checkpoint] = (generation, seq)

    def fell(self) -> None:
        """The stream lost track: later changes belong to no point until a sync ends."""

    # --- the judge reads

    def count_at(self, point: Point) -> int:
        """Entries that a point stands for; -1 if it is none."""
        generation = self.generations.get(point[0])
        if generation is None or not 1 <= point[1] <= len(generation.counts):
            return -1
        return generation.counts[point[1] - 1]

    def newest_count(self, generation: bytes, stored: int) -> int:
        """The most entries that a stored position of the generation stands for; -1 for none."""
        found = self.generations.get(generation)
        if found is None:
            return -1
        for seq in range(min(stored, len(found.counts)), 0, -1):
            if found.counts[seq - 1] >= 0:
                return found.counts[seq - 1]
        return -1

    def unsafe_since(self, count: int) -> float:
        """When the first change after so many entries was made; now if there is none."""
        return self.changes[count].at if 0 <= count < len(self.changes) else self.now()

    def images(self, counts: list[int]) -> dict[int, Images]:
        """The disks after so many entries, for each of the given numbers."""
        disks = [bytearray(size) for size in self.sizes]
        found: dict[int, Images] = {}
        done = 0
        for count in sorted(set(counts)):
            for change in self.changes[done:count]:
                disk = disks[change.disk]
                disk[change.offset : change.offset + len(change.data)] = change.data
            done = count
            found[count] = tuple(map(bytes, disks))
        return found
