"""An event loop whose time jumps to the next timer: hours in milliseconds, the same for a seed."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class Stuck(AssertionError):
    """Nothing is left to happen, ever."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting it moves the loop's time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("no timer and no event")
            self.now += max(0.0, timeout)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with simulated time. No threads, no sockets."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._jumping.now


def simulate(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)
