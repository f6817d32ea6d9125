"""How many of something are let through in a second: what is above does not slow others down."""

from __future__ import annotations


class Pace:
    """A token bucket. Times are of a monotonic clock, seconds."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._left, self._at = burst, 0.0

    def has_one(self, now: float) -> bool:
        """Whether one more would be within the limit; counts nothing."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        return self._left >= 1

    def takes(self, now: float) -> bool:
        """Whether one more is within the limit; counts it."""
        if not self.has_one(now):
            return False
        self._left -= 1
        return True
