"""What is due when: checkpoints of groups, each at its own interval. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: A group's first checkpoint lies somewhere within its interval: thousands are not due together.
_SPREAD = 1_000


@dataclass(frozen=True)
class _Entry:
    every_seconds: float
    turn: int


class Agenda(Generic[K]):
    """Keys that are due at intervals. Times are of a monotonic clock, seconds."""

    def __init__(self) -> None:
        self._entries: dict[K, _Entry] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._turns = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, every_seconds: float, now: float, *, salt: int = 0) -> None:
        """From now on the key is due at this interval. Unchanged if it is already."""
        known = self._entries.get(key)
        if known is not None and known.every_seconds == every_seconds:
            return
        self._turns += 1
        self._entries[key] = _Entry(every_seconds, self._turns)
        first = now + every_seconds * (salt % _SPREAD) / _SPREAD
        heapq.heappush(self._heap, (first, self._turns, key))

    def remove(self, key: K) -> None:
        """Due no more."""
        self._entries.pop(key, None)

    def due(self, now: float, count_max: int) -> list[K]:
        """What is due, at most so many; each is due again one interval later. What was missed is
        not caught up with: two checkpoints at once are worth no more than one.
        """
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now and len(found) < count_max:
            at, turn, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is None or entry.turn != turn:
                continue  # removed, or put anew
            found.append(key)
            missed = max(0.0, now - at) // entry.every_seconds
            following = at + entry.every_seconds * (missed + 1)
            heapq.heappush(self._heap, (following, turn, key))
        return found

    def next_due(self) -> float | None:
        """When something may be due next; None: never."""
        return self._heap[0][0] if self._heap else None
