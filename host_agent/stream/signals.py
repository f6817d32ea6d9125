"""How coroutines of a stream wake each other, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends; then end the others. Raises what the first to fail raised.

    Not a TaskGroup: one that fails while it is cancelled swallows the cancellation.
    """
    tasks = [asyncio.create_task(one) for one in work]
    done: set[asyncio.Task[None]] = set()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in sorted(tasks, key=lambda task: task not in done):
        if not task.cancelled():
            task.result()


class Signal:
    """`notify` wakes everybody who waits now; who comes later waits for the next one.

    Check the condition and call `wait` without awaiting anything between, and none is missed.
    """

    def __init__(self) -> None:
        # A dictionary, not a set: they are woken in the order in which they came.
        self._waiting: dict[asyncio.Future[None], None] = {}

    def notify(self) -> None:
        """Wake all that wait."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the next `notify`, at most `seconds`. False if time ran out."""
        if seconds is not None and seconds <= 0:
            await asyncio.sleep(0)
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            async with asyncio.timeout(seconds):
                await future
                return True
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(future, None)
