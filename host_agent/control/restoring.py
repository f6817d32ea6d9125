"""The command `restore`: a ticket's disks become raw images in a folder of this host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_agent.control.commands import Tell
from host_agent.control.reach import Reach
from host_agent.recovery.restore import Progress, Restored, Wanted, restore
from host_agent.stream.link import Credentials
from host_agent.wire.control import Restore

#: Progress is told so often at most.
_TELL_SECONDS = 1.0


#: So many are remembered, so that one that is asked for again is not done again.
_REMEMBERED_MAX = 32


@dataclass
class _Running:
    """A restore, and who hears how far it is: whoever asked last."""

    task: asyncio.Task[Restored]
    tell: Tell

    @property
    def is_good(self) -> bool:
        """It runs or has succeeded."""
        return not self.task.done() or not (self.task.cancelled() or self.task.exception())


class Restoring:
    """Restores for one tenant, by that tenant's certificate. A restore that was interrupted goes
    on where it was when it is asked for again; one that runs or is over is not begun again, for a
    manager that has lost its connection asks anew."""

    def __init__(self, credentials: Credentials, reach: Reach) -> None:
        self._credentials = credentials
        self._reach = reach
        self._known: dict[tuple[str, str], _Running] = {}

    async def run(self, body: Restore, tell: Tell) -> Mapping[str, Any]:
        """Restore; NotInInventory for a folder that is not for it, and what `restore` raises."""
        directory = Path(body.directory)
        self._reach.check_target(directory)
        key = (body.ticket, body.directory)
        running = self._known.get(key)
        if running is not None and running.is_good:
            running.tell = tell
        else:
            running = self._begin(body, directory, tell)
            self._known[key] = running
            self._forget()
        restored = await running.task
        return {
            "operation": body.operation,
            "directory": str(restored.directory),
            "disks": len(restored.disks),
            "bytes": sum(disk.size for disk in restored.disks),
            "bytes_received": sum(disk.bytes_received for disk in restored.disks),
        }

    def _begin(self, body: Restore, directory: Path, tell: Tell) -> _Running:
        told_at = 0.0

        def report(progress: Progress) -> None:
            nonlocal told_at
            now = time.monotonic()
            if now - told_at >= _TELL_SECONDS:
                told_at = now
                running.tell(progress.share, progress.phase)

        wanted = Wanted(body.ticket, body.doors, self._credentials, directory)
        running = _Running(asyncio.ensure_future(restore(wanted, report)), tell)
        return running

    def _forget(self) -> None:
        """The oldest that are over make room."""
        over = [key for key, one in self._known.items() if one.task.done()]
        for key in over[: max(0, len(self._known) - _REMEMBERED_MAX)]:
            del self._known[key]
