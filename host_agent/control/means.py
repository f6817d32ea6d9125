"""The real clock, randomness and threads that streams work with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from host_agent.stream.ports import Result


class RealClock:
    """This host's clocks."""

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """Nanoseconds UTC."""
        return time.time_ns()


class RealRandom:
    """The kernel's randomness for salts and names; jitter needs none of that quality."""

    def __init__(self) -> None:
        self._jitter = random.Random()  # noqa: S311

    def bytes(self, count: int) -> bytes:
        """Random bytes that nobody can guess."""
        return os.urandom(count)

    def fraction(self) -> float:
        """0 to 1."""
        return self._jitter.random()


class ThreadOffload:
    """A few threads for all streams: reading, compressing and sealing happen in C."""

    def __init__(self, threads: int = 2) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="holdfast-seal")

    async def __call__(self, function: Callable[[], Result]) -> Result:
        """Run it beside the loop. Cancelled, it still ends only after the call did.

        So nobody closes a ring that a thread is reading.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=True)
