"""The command `restore`: a ticket's disks become raw images in a folder of this host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from host_agent.control.commands import Tell
from host_agent.control.reach import Reach
from host_agent.recovery.restore import Progress, Wanted, restore
from host_agent.stream.link import Credentials
from host_agent.wire.control import Restore

#: Progress is told so often at most.
_TELL_SECONDS = 1.0


class Restoring:
    """Restores for one tenant, by that tenant's certificate. A restore that was interrupted goes
    on where it was when it is asked for again."""

    def __init__(self, credentials: Credentials, reach: Reach) -> None:
        self._credentials = credentials
        self._reach = reach

    async def run(self, body: Restore, tell: Tell) -> Mapping[str, Any]:
        """Restore; NotInInventory for a folder that is not for it, and what `restore` raises."""
        directory = Path(body.directory)
        self._reach.check_target(directory)
        told_at = 0.0

        def report(progress: Progress) -> None:
            nonlocal told_at
            now = time.monotonic()
            if now - told_at >= _TELL_SECONDS:
                told_at = now
                tell(progress.share, progress.phase)

        wanted = Wanted(body.ticket, body.doors, self._credentials, directory)
        restored = await restore(wanted, report)
        return {
            "operation": body.operation,
            "directory": str(restored.directory),
            "disks": len(restored.disks),
            "bytes": sum(disk.size for disk in restored.disks),
            "bytes_received": sum(disk.bytes_received for disk in restored.disks),
        }
