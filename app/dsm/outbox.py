"""Messages that wait for a connection to take them, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

M = TypeVar("M")


class Outbox(Generic[M]):
    """Put at once, sent in order by `run`. Once it was full it takes nothing more, and `run` ends:
    what is at fault is the connection.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._waiting: deque[M] = deque()
        self._woken = asyncio.Event()
        self._is_full = False

    def put(self, message: M) -> bool:
        """False if there is no room."""
        self._is_full = self._is_full or len(self._waiting) >= self._count_max
        if not self._is_full:
            self._waiting.append(message)
        self._woken.set()
        return not self._is_full

    async def run(self, send: Callable[[M], Awaitable[None]]) -> None:
        """Send until cancelled, until `send` fails, or until it was full."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                if self._is_full:
                    return
                await send(self._waiting.popleft())


async def until_first(
    *parts: Coroutine[Any, Any, Any], expected: tuple[type[Exception], ...]
) -> None:
    """Run all until the first ends, then end the others. Raises what is not expected."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception) and not isinstance(end, expected):
            raise end
