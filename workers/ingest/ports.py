"""What a session takes from outside, so that the same code runs live and in a simulator."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")


class Clock(Protocol):
    """Two times: one for people and the chain, one for waiting."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds of a clock that never runs back."""
        ...


class SystemClock:
    """The machine's."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()


class Offload(Protocol):
    """Runs what blocks or computes for long, away from the event loop."""

    async def __call__(self, work: Callable[[], _Result]) -> _Result: ...


class ThreadOffload:
    """In an executor's threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def __call__(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


Token = Callable[[int], bytes]
"""So many random bytes."""


def system_token(count: int) -> bytes:
    """Random bytes from the operating system."""
    return os.urandom(count)
