"""A wake-up for coroutines that look again at what they wait for."""

from __future__ import annotations

import asyncio


class Signal:
    """`notify` wakes everybody who waits now; who comes later waits for the next one.

    Check the condition and call `wait` without awaiting anything between, and none is missed.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all that wait."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the next `notify`, at most `seconds`. False if time ran out."""
        if seconds is not None and seconds <= 0:
            await asyncio.sleep(0)
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(seconds):
                await future
                return True
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
