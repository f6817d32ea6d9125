"""`holdfast ingest`: one process for one tenant, from its configuration to its orderly end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workers.ingest.asof import AsofName, AsofWriter
from workers.ingest.budget import Budget
from workers.ingest.config import IngestConfig, load_config
from workers.ingest.decide import Rules
from workers.ingest.errors import BadConfig
from workers.ingest.log import Log
from workers.ingest.memory import return_memory, reuse_memory
from workers.ingest.ports import SystemClock, ThreadOffload, system_token
from workers.ingest.rpo import Moment
from workers.ingest.server import Server
from workers.ingest.status import serve_status, status_of
from workers.ingest.tls import server_context
from workers.ingest.tools import Timing, Tools
from workers.storage.errors import StoreError
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


def run_ingest(config_path: Path) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Raises HoldfastError for everything that keeps it from starting: the configuration, the
    certificates, a store that is away or cannot keep a journal, an address that is taken.
    """
    config = load_config(config_path)
    reuse_memory()
    context = server_context(config.tls)
    stopping = threading.Event()
    store = open_store(
        config.store,
        create=True,
        credentials=config.credentials,
        tools=RetryTools(sleep=lambda seconds: _sleep(stopping, seconds)),
    )
    clock = SystemClock()
    log = Log(clock.wall_ns)
    probe_store(store, probe_prefix(config.tenant), ProbeTools(clock.wall_ns, system_token))
    executor = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix=_THREAD_NAME)
    tools = Tools(
        rules=Rules(
            config.tenant, config.hosts, config.commit_seconds_min, config.commit_seconds_max
        ),
        timing=Timing(probe_seconds=config.probe_seconds),
        store=store,
        offload=ThreadOffload(executor),
        clock=clock,
        token=system_token,
        budget=Budget(config.limits.memory_bytes_max),
        log=log,
    )
    process = _Process(config, tools, Server(context, config.limits, tools))
    # What was imported stays; the collector need not look at it again and again.
    gc.freeze()
    asyncio.run(process.run())
    stopping.set()
    return _leave(executor)


def _sleep(stopping: threading.Event, seconds: float) -> None:
    stopping.wait(seconds)


def _leave(executor: ThreadPoolExecutor) -> int:
    """Do not wait for a store that hangs: nothing was acknowledged that it has not confirmed."""
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + _LEAVE_SECONDS_MAX
    for thread in threading.enumerate():
        if thread.name.startswith(_THREAD_NAME):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                sys.stderr.flush()
                os._exit(0)
    return 0


class _Process:
    """What runs beside the sessions: signals, status, statements."""

    def __init__(self, config: IngestConfig, tools: Tools, server: Server) -> None:
        self._config = config
        self._tools = tools
        self._server = server
        name = AsofName(config.tenant, tools.token(16))
        self._asof = AsofWriter(tools.store, name)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self._tools.offload(self._asof.load)
        host, port = self._start_listening()
        status = await self._start_status()
        beside = [asyncio.create_task(self._state()), asyncio.create_task(self._tidy())]
        self._tools.log.info(
            "listening",
            address=f"{host}:{port}",
            tenant=self._config.tenant,
            store=self._tools.store.label,
            pid=os.getpid(),
        )
        await stop.wait()
        self._tools.log.info("stopping", sessions=len(self._server.sessions))
        for task in beside:
            task.cancel()
        await self._server.stop()
        if status is not None:
            status.close()
        if self._config.status_socket is not None:
            self._config.status_socket.unlink(missing_ok=True)
        self._tools.log.info("stopped")

    def _start_listening(self) -> tuple[str, int]:
        address = self._config.listen
        try:
            return self._server.start(address)
        except OSError as error:
            raise BadConfig(
                f"{self._config.path}: listen: {address[0]}:{address[1]} cannot be used: "
                f"{error.strerror}.",
                hint="Does another ingest run? Choose another address or port.",
            ) from None

    async def _start_status(self) -> asyncio.AbstractServer | None:
        path = self._config.status_socket
        if path is None:
            return None
        try:
            return await serve_status(
                path, lambda: status_of(self._server, self._tools.budget, self._now())
            )
        except OSError as error:
            raise BadConfig(
                f"{self._config.path}: status_socket: {path} cannot be made: {error.strerror}.",
                hint="Make its folder, writable for this user.",
            ) from None

    async def _state(self) -> None:
        """Statements, once an interval and only when one changed."""
        clock = self._tools.clock
        while True:
            await asyncio.sleep(self._config.asof_seconds)
            if self._asof.gather(self._server.all_facts(), clock.monotonic()):
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

    def _now(self) -> Moment:
        return Moment(self._tools.clock.monotonic(), self._tools.clock.wall_ns())

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """What asyncio could not give to anybody: connections that break in odd ways."""
        error = context.get("exception")
        self._tools.log.warning(
            "loop_error", message=context.get("message"), error=type(error).__name__
        )
