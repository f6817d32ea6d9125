"""A tenant's process after its fork: it learns whose it is, and serves."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import socket

import msgspec

from host_agent.wire.errors import HoldfastError
from host_agent.wire.serving import ServingRecord
from workers.ingest.log import Log
from workers.ingest.memory import reuse_memory
from workers.ingest.ports import SystemClock
from workers.ingest.tls import ServerIdentity
from workers.supervisor.channel import Channel, Message
from workers.supervisor.kinds import SERVICES
from workers.supervisor.port import OpenService, Service, ServiceStart

#: The supervisor hears so often how it goes.
REPORT_SECONDS = 2.0
#: Connections that wait while a service begins: its store may take long to answer.
_EARLY_MAX = 64


def run_child(end: socket.socket) -> int:
    """Serve until the supervisor hangs up or a signal comes; the exit status."""
    reuse_memory()
    return asyncio.run(_run(end))


async def _run(end: socket.socket) -> int:
    return await _Child(end).run()


class _Child:
    def __init__(self, end: socket.socket) -> None:
        self._stop = asyncio.Event()
        self._started: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._channel = Channel(end, self._on_message, self._stop.set)
        self._service: Service | None = None
        #: What came before the service was there. Of records and certificates the last one counts.
        self._early: list[tuple[socket.socket, str]] = []
        self._newer: dict[str, Message] = {}

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        self._channel.say_here()
        stopped = asyncio.create_task(self._stop.wait())
        serving = asyncio.create_task(self._serve())
        await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if serving.done():
            return serving.result()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        if self._service is not None:
            await self._service.stop()
        return 0

    async def _serve(self) -> int:
        message = await self._started
        start = ServiceStart(
            record=_record(message),
            identity=_identity(message),
            log=Log(SystemClock().wall_ns, tenant=message["record"]["tenant"]),
            is_store_probed=message["is_store_probed"],
        )
        open_service: OpenService = importlib.import_module(
            SERVICES[message["service"]]
        ).open_service
        try:
            service = await open_service(start)
        except HoldfastError as error:
            start.log.warning("not_started", code=error.code, message=error)
            self._channel.send({"type": "failed", "code": error.code, "message": error.message})
            return 1
        self._service = service
        for message in self._newer.values():
            self._change(service, message)
        self._channel.send({"type": "ready"})
        for connected, address in self._early:
            service.take(connected, address)
        self._early.clear()
        while True:
            report = {"type": "report", "status": service.status(), "facts": service.facts()}
            self._channel.send(report)
            await asyncio.sleep(REPORT_SECONDS)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        kind = message["type"]
        if kind == "take":
            connected = socket.socket(fileno=descriptors[0])
            connected.setblocking(False)
            if self._service is not None:
                self._service.take(connected, message["address"])
            elif len(self._early) < _EARLY_MAX:
                self._early.append((connected, message["address"]))
            else:
                connected.close()
        elif kind == "start":
            self._started.set_result(message)
        elif self._service is None:
            self._newer[kind] = message
        else:
            self._change(self._service, message)

    def _change(self, service: Service, message: Message) -> None:
        if message["type"] == "record":
            service.change(_record(message))
        else:
            service.renew(_identity(message))


def _record(message: Message) -> ServingRecord:
    return msgspec.convert(message["record"], ServingRecord)


def _identity(message: Message) -> ServerIdentity:
    return ServerIdentity(message["certificate"], message["key"])
