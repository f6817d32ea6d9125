"""What a long restore tells of itself while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears of phases and of what is done in them."""

    def start(self, phase: str, total: int | None, unit: str) -> None:
        """A phase begins. `total` in `unit` ("bytes" or another word), None if not known."""
        ...

    def advance(self, amount: int) -> None:
        """So much more of the phase is done."""
        ...

    def say(self, sentence: str) -> None:
        """Something that a person should read."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, phase: str, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""
