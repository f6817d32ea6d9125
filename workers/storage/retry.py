"""A store that repeats what may succeed later, within bounds, and never guesses an outcome.

A create whose outcome is unknown is repeated with the same bytes. If the name is taken then, what
is there is read and compared: the same bytes are ours, others are somebody else's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from host_agent.wire.pieces import Content
from workers.storage.errors import (
    ObjectMissing,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from workers.storage.port import LIST_PAGE_NAMES, Created, Listed, ObjectStore

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How long a call is repeated. Seconds; the pauses double and are jittered whole."""

    attempts_max: int = 8
    pause_seconds_first: float = 0.1
    pause_seconds_max: float = 3.0
    seconds_max: float = 30.0


@dataclass(frozen=True)
class RetryTools:
    """What retrying takes from outside. `sleep` may raise StoreError to give up."""

    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.SystemRandom)


class RetryingStore:
    """Wraps a store; an error that it raises has outlasted the policy or is not worth repeating."""

    def __init__(
        self,
        inner: ObjectStore,
        policy: RetryPolicy | None = None,
        tools: RetryTools | None = None,
    ) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._tools = tools or RetryTools()

    @property
    def inner(self) -> ObjectStore:
        """The store that is wrapped."""
        return self._inner

    @property
    def label(self) -> str:
        return self._inner.label

    def put_if_absent(self, name: str, data: Content) -> Created:
        unsure = False

        def attempt() -> Created:
            nonlocal unsure
            try:
                outcome = self._inner.put_if_absent(name, data)
            except OutcomeUnknown:
                unsure = True
                raise
            if outcome is Created.EXISTS and unsure and self._holds(name, data):
                return Created.CREATED
            return outcome

        try:
            return self._repeat(attempt)
        except OutcomeUnknown:
            raise
        except StoreError as error:
            if unsure:  # whatever the last answer was, an earlier request may still arrive
                raise OutcomeUnknown(error.message, hint=error.hint) from error
            raise

    def _holds(self, name: str, data: Content) -> bool:
        try:
            return self._inner.get(name) == data
        except ObjectMissing as error:
            raise StoreUnavailable(
                f"{self.label} says that {name} exists and that it is missing."
            ) from error

    def get(self, name: str) -> bytes:
        return self._repeat(lambda: self._inner.get(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self._repeat(lambda: self._inner.get_range(name, start, length))

    def get_tail(self, name: str, length: int) -> bytes:
        return self._repeat(lambda: self._inner.get_tail(name, length))

    def size(self, name: str) -> int:
        return self._repeat(lambda: self._inner.size(name))

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        rest = limit
        while rest is None or rest > 0:
            wanted = LIST_PAGE_NAMES if rest is None else min(rest, LIST_PAGE_NAMES)
            page = self._page(folder, start_after, wanted)
            yield from page
            if len(page) < wanted:
                return
            start_after = page[-1].name
            rest = None if rest is None else rest - len(page)

    def _page(self, folder: str, start_after: str, wanted: int) -> tuple[Listed, ...]:
        return self._repeat(lambda: tuple(self._inner.list(folder, start_after, wanted)))

    def folders(self, folder: str) -> Iterator[str]:
        return iter(self._repeat(lambda: tuple(self._inner.folders(folder))))

    def delete(self, name: str) -> None:
        self._repeat(lambda: self._inner.delete(name))

    def answered_at(self) -> int | None:
        return self._inner.answered_at()

    def _repeat(self, attempt: Callable[[], _Result]) -> _Result:
        policy, tools = self._policy, self._tools
        deadline = tools.monotonic() + policy.seconds_max
        pause = policy.pause_seconds_first
        for number in range(1, policy.attempts_max + 1):
            try:
                return attempt()
            except StoreFull:
                raise  # room does not come back within seconds
            except StoreError as error:
                out_of_time = tools.monotonic() + pause > deadline
                if not error.retryable or out_of_time or number == policy.attempts_max:
                    raise
            tools.sleep(tools.rng.uniform(0, pause))
            pause = min(pause * 2, policy.pause_seconds_max)
        raise AssertionError("the last attempt returns or raises")
