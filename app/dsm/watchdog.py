"""Counts how often the loop was held up: nothing in this process may run longer than 5 ms.

Measured around the selector, the one place that the loop comes back to. Time that the machine gave
to other processes is not ours: a pass counts only if this thread computed for so long, or blocked.
"""

from __future__ import annotations

import asyncio
import resource
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any

STALL_SECONDS = 0.005


class WatchedSelector(selectors.BaseSelector):
    """A selector that tells when too much time went by between two calls."""

    def __init__(self, on_stall: Callable[[float], None]) -> None:
        self._inner = selectors.DefaultSelector()
        self._on_stall = on_stall
        self._left_at: float | None = None
        self._computed = 0.0
        self._blocked = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._left_at is not None:
            took = time.monotonic() - self._left_at
            if took > STALL_SECONDS and self._was_ours():
                self._on_stall(took)
        found = self._inner.select(timeout)
        self._left_at = time.monotonic()
        self._computed = time.thread_time()
        self._blocked = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return found

    def _was_ours(self) -> bool:
        if time.thread_time() - self._computed > STALL_SECONDS:
            return True
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > self._blocked

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()


def watched_loop(on_stall: Callable[[float], None]) -> asyncio.AbstractEventLoop:
    """A loop that tells of each stall, in seconds."""
    return asyncio.SelectorEventLoop(WatchedSelector(on_stall))
