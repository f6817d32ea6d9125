"""Which parts of a disk are still to be read. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from host_agent.wire import limits


class Done:
    """Ranges of a disk that are there, joined where they adjoin."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges`: (offset, length), in any order."""
        self._starts: list[int] = []
        self._stops: list[int] = []
        for offset, length in sorted(ranges):
            stop = offset + length
            if self._stops and offset <= self._stops[-1]:
                self._stops[-1] = max(self._stops[-1], stop)
            else:
                self._starts.append(offset)
                self._stops.append(stop)

    @property
    def bytes(self) -> int:
        """How many there are."""
        return sum(self._stops) - sum(self._starts)

    def missing(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What is not there of a range: (offset, length), ascending."""
        at, end = offset, offset + length
        index = bisect_right(self._stops, at)
        while at < end:
            start = self._starts[index] if index < len(self._starts) else end
            if start > at:
                yield at, min(start, end) - at
            if start >= end:
                return
            at = self._stops[index]
            index += 1


def reads_of(
    ranges: Iterable[tuple[int, int]], done: Done, step: int = limits.RESTORE_READ_BYTES_MAX
) -> Iterator[tuple[int, int]]:
    """READs (offset, length) of at most `step` bytes for what is not there of the ranges."""
    for offset, length in ranges:
        for start, missing in done.missing(offset, length):
            for at in range(start, start + missing, step):
                yield at, min(step, start + missing - at)
