"""`holdfast ingest`: one process for one tenant, from its configuration to its orderly end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path

from workers.ingest.answering import serve_json
from workers.ingest.config import IngestConfig, load_config
from workers.ingest.errors import BadConfig
from workers.ingest.log import Log
from workers.ingest.memory import reuse_memory
from workers.ingest.ports import SystemClock
from workers.ingest.server import Server
from workers.ingest.service import Background, StoreWork
from workers.ingest.status import status_of
from workers.ingest.tls import server_context
from workers.ingest.tools import Tools


def run_ingest(config_path: Path) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Raises HoldfastError for everything that keeps it from starting: the configuration, the
    certificates, a store that is away or cannot keep a journal, an address that is taken.
    """
    config = load_config(config_path)
    reuse_memory()
    context = server_context(config.tls)
    work = StoreWork(config, Log(SystemClock().wall_ns))
    process = _Process(config, work.tools, Server(context, config.limits, work.tools))
    # What was imported stays; the collector need not look at it again and again.
    gc.freeze()
    asyncio.run(process.run())
    return work.leave()


class _Process:
    """What a process of its own has besides: signals, a listener, a status socket."""

    def __init__(self, config: IngestConfig, tools: Tools, server: Server) -> None:
        self._config = config
        self._tools = tools
        self._server = server
        self._background = Background(config, tools)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self._background.start(self._server)
        host, port = self._start_listening()
        status = await self._start_status()
        self._tools.log.info(
            "listening",
            address=f"{host}:{port}",
            tenant=self._config.tenant,
            store=self._tools.store.label,
            pid=os.getpid(),
        )
        await stop.wait()
        self._tools.log.info("stopping", sessions=len(self._server.sessions))
        self._background.stop()
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
            return await serve_json(
                path,
                lambda: status_of(self._server, self._tools, self._background.now()),
            )
        except OSError as error:
            raise BadConfig(
                f"{self._config.path}: status_socket: {path} cannot be made: {error.strerror}.",
                hint="Make its folder, writable for this user.",
            ) from None
