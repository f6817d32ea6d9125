"""Hosts whose identity two machines seem to use: their connections replace each other. Pure.

A host that lost its line comes back once and replaces what was left of it. Two machines with one
identity do so again and again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from uuid import UUID

#: So many live connections replaced within that time are no broken line.
REPLACED_MIN, WITHIN_SECONDS = 4, 120.0
#: After so long without another it is over.
CALM_SECONDS = 600.0

Key = tuple[UUID, UUID]


class Twins:
    """Counts replaced connections by (tenant, host). Times are monotonic seconds."""

    def __init__(self) -> None:
        self._replaced: dict[Key, deque[float]] = defaultdict(lambda: deque(maxlen=REPLACED_MIN))
        self._told: set[Key] = set()

    def replaced(self, key: Key, now: float) -> bool:
        """A live connection was replaced; whether this is to be told, once."""
        times = self._replaced[key]
        times.append(now)
        is_often = len(times) == REPLACED_MIN and now - times[0] < WITHIN_SECONDS
        if not is_often or key in self._told:
            return False
        self._told.add(key)
        return True

    def calm(self, now: float) -> list[Key]:
        """Of those that were told, the ones for which it is over; each once."""
        quiet = [key for key, times in self._replaced.items() if now - times[-1] > CALM_SECONDS]
        for key in quiet:
            del self._replaced[key]
        over = [key for key in quiet if key in self._told]
        self._told -= set(over)
        return over
