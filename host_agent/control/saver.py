"""Writes a small file durably beside the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from host_agent.control.state_dir import write_durably
from host_agent.stream.ports import Offload


class Saver:
    """One file. Whoever asks while a write is under way shares the next one with the others."""

    def __init__(self, path: Path, snapshot: Callable[[], bytes], offload: Offload) -> None:
        self._path = path
        self._snapshot = snapshot
        self._offload = offload
        self._lock = asyncio.Lock()
        self._asked = 0
        self._saved = 0

    async def save(self) -> None:
        """Return when what is so now is on disk; StateUnusable."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._saved >= mine:
                return
            upto, data = self._asked, self._snapshot()
            await self._offload(partial(write_durably, self._path, data))
            self._saved = upto
