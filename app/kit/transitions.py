"""States that change only as a table says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from app.kit.problems import Problem

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class IllegalTransition(Problem):
    """An event that a state does not have; carries both ends."""

    def __init__(self, state: StrEnum, event: StrEnum, possible: list[str]) -> None:
        hint = f"Possible now: {', '.join(possible)}." if possible else "Nothing moves it any more."
        super().__init__(
            "illegal_transition", f"What is {state} does not take {event.value!r}.", hint=hint
        )
        self.state, self.event = state, event


class Transitions(Generic[S, E]):
    """(state, event) to the state after it. What is not listed is illegal."""

    def __init__(self, table: Mapping[tuple[S, E], S]) -> None:
        self.table = dict(table)

    def after(self, state: S, event: E) -> S:
        """The next state; IllegalTransition."""
        following = self.table.get((state, event))
        if following is None:
            raise IllegalTransition(state, event, self.events_of(state))
        return following

    def events_of(self, state: S) -> list[str]:
        """What moves this state on."""
        return [event.value for (at, event) in self.table if at == state]
