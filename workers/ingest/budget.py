"""The process's memory for frames: sessions share it, and wait when it is used up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Budget:
    """Bytes of frames held. A session that holds nothing is always let in with one frame."""

    def __init__(self, length_max: int) -> None:
        self._length_max = length_max
        self._waiting: deque[Callable[[], None]] = deque()
        self.held = 0
        self.held_max = 0
        self.held_lately = 0

    def take(self, length: int, *, holds_nothing: bool) -> bool:
        """Count `length` bytes as held if there is room for them."""
        if self.held + length > self._length_max and not holds_nothing:
            return False
        self.held += length
        self.held_max = max(self.held_max, self.held)
        self.held_lately = max(self.held_lately, self.held)
        return True

    def give_back(self, length: int) -> None:
        """Bytes were stored or dropped; those who wait try again, in their order."""
        self.held -= length
        assert self.held >= 0, "more given back than taken"
        waiting, self._waiting = self._waiting, deque()
        for wake in waiting:
            wake()

    def look(self) -> int:
        """The most that was held since the last look."""
        most, self.held_lately = self.held_lately, self.held
        return most

    def wait(self, wake: Callable[[], None]) -> None:
        """Call `wake` when something is given back."""
        self._waiting.append(wake)
