"""One tenant's ingest without its door: what runs beside the sessions, from its start to its end.

`command` runs it behind a listener of its own, from a file; `door` behind a data node's, from a
tenant's record.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from workers.ingest.asof import AsofName, AsofWriter
from workers.ingest.budget import Budget
from workers.ingest.config import IngestSettings
from workers.ingest.log import Log
from workers.ingest.memory import return_memory
from workers.ingest.ports import SystemClock, ThreadOffload, system_token
from workers.ingest.quota import Quota
from workers.ingest.rpo import Moment
from workers.ingest.server import Server
from workers.ingest.tools import Timing, Tools
from workers.storage.errors import StoreError
from workers.storage.port import ObjectStore
from workers.storage.probe import ProbeTools, probe_prefix, probe_store
from workers.storage.retry import RetryTools
from workers.storage.url import open_store

#: Requests to the store at once. More would only fill memory faster than the store takes it.
_STORE_THREADS = 4
_THREAD_NAME = "store"
#: How long a request under way may take at the end of the process.
_LEAVE_SECONDS_MAX = 0.5
#: After so long with less than this held, what a burst used goes back to the system.
_TIDY_SECONDS = 10.0
_BUSY_BYTES = 16 * 1024 * 1024
#: Parts of the quota follow what the streams send so often.
_SHARE_SECONDS = 1.0


class StoreWork:
    """The store of one tenant and the threads that wait for it."""

    def __init__(self, settings: IngestSettings, log: Log) -> None:
        """Opens the store and, unless it was done before, tries whether it can keep a journal.

        Blocks. Raises BadStoreUrl and other StoreErrors.
        """
        self._stopping = threading.Event()
        tools = RetryTools(sleep=self._sleep)
        self.store: ObjectStore = open_store(
            settings.store, create=True, credentials=settings.credentials, tools=tools
        )
        clock = SystemClock()
        if not settings.is_probed:
            probing = ProbeTools(clock.wall_ns, system_token)
            probe_store(self.store, probe_prefix(settings.tenant), probing)
        self._executor = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix=_THREAD_NAME)
        self.tools = Tools(
            rules=settings.rules,
            timing=Timing(probe_seconds=settings.probe_seconds),
            store=self.store,
            offload=ThreadOffload(self._executor),
            clock=clock,
            token=system_token,
            budget=Budget(settings.limits.memory_bytes_max),
            log=log,
            quota=Quota(settings.limits.bytes_per_second),
        )

    def _sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def leave(self) -> int:
        """The exit status. A store that hangs is not waited for: nothing was acknowledged that it
        has not confirmed. May end the process.
        """
        self._stopping.set()
        self._executor.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _LEAVE_SECONDS_MAX
        for thread in threading.enumerate():
            if thread.name.startswith(_THREAD_NAME):
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    sys.stderr.flush()
                    os._exit(0)
        return 0


class Background:
    """What runs beside the sessions: statements, and memory that goes back."""

    def __init__(self, settings: IngestSettings, tools: Tools) -> None:
        self._asof_seconds = settings.asof_seconds
        self._tools = tools
        self._asof = AsofWriter(tools.store, AsofName(settings.tenant, tools.token(16)))
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, server: Server) -> None:
        """Take over what was stated before, and go on from there. StoreError."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await self._tools.offload(self._asof.load)
        self._tasks = [
            asyncio.create_task(self._state(server)),
            asyncio.create_task(self._tidy()),
            asyncio.create_task(self._share(server)),
        ]

    def stop(self) -> None:
        """End it."""
        for task in self._tasks:
            task.cancel()

    async def _state(self, server: Server) -> None:
        """Statements, once an interval and only when one changed."""
        clock = self._tools.clock
        while True:
            await asyncio.sleep(self._asof_seconds)
            if self._asof.gather(server.all_facts(), clock.monotonic()):
                wall_ns = clock.wall_ns()
                try:
                    await self._tools.offload(lambda: self._asof.write(wall_ns))  # noqa: B023
                except StoreError as error:
                    # Sessions meet the same store and end by it; the next statement says it all.
                    self._tools.log.warning("statement_failed", code=error.code, message=error)

    async def _tidy(self) -> None:
        """Give memory back once a burst is over."""
        busy = False
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            was_busy, busy = busy, self._tools.budget.look() >= _BUSY_BYTES
            if was_busy and not busy:
                return_memory()

    async def _share(self, server: Server) -> None:
        """Tell each agent its part of the tenant's quota."""
        while True:
            await asyncio.sleep(_SHARE_SECONDS)
            server.share_quota(_SHARE_SECONDS)

    def now(self) -> Moment:
        """This instant on both clocks."""
        return Moment(self._tools.clock.monotonic(), self._tools.clock.wall_ns())

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """What asyncio could not give to anybody: connections that break in odd ways."""
        error = context.get("exception")
        self._tools.log.warning(
            "loop_error", message=context.get("message"), error=type(error).__name__
        )
