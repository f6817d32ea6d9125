"""The data node's one listener: whom does a connection want? It is read by nobody here.

The router has no key and no record. It looks at the first bytes of a connection without taking
them, and passes the untouched socket on with the name that it found. Whoever asks for nothing that
could be a tenant's is closed without a byte.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Coroutine

from host_agent.wire.errors import BadName
from host_agent.wire.names import parse_server_name
from workers.ingest.log import Log
from workers.ingest.ports import SystemClock
from workers.supervisor.channel import Channel, Message
from workers.supervisor.hello import HELLO_BYTES_MAX, NoHello, server_name_of
from workers.supervisor.state import Waiting

#: Within so long a client has to have said whom it wants.
HELLO_SECONDS_MAX = 5.0
#: Connections that have not said it yet. A host says it at once; only a flood reaches these.
WAITING_MAX, WAITING_ADDRESS_MAX = 1024, 64
#: Sockets on their way to the supervisor. More means that it is stuck.
_PASSING_MAX = 256
_REPORT_SECONDS = 2.0
_RETRY_SECONDS = 0.05
_ESTABLISHED = 1


def run_router(end: socket.socket) -> int:
    """Accept until the supervisor hangs up or a signal comes; the exit status."""
    return asyncio.run(_run(end))


async def _run(end: socket.socket) -> int:
    router = _Router(end)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, router.stop.set)
    reporting = asyncio.create_task(router.report())
    await router.stop.wait()
    reporting.cancel()
    return 0


class _Router:
    def __init__(self, end: socket.socket) -> None:
        self.stop = asyncio.Event()
        self._channel = Channel(end, self._on_message, self.stop.set)
        self._waiting = Waiting(WAITING_MAX, WAITING_ADDRESS_MAX)
        self._log = Log(SystemClock().wall_ns)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = dict.fromkeys(
            ("accepted", "passed", "refused_full", "refused_name", "refused_slow"), 0
        )
        self._channel.say_here()

    async def report(self) -> None:
        while True:
            status = {**self._counters, "waiting": self._waiting.count}
            self._channel.send({"type": "report", "status": status, "facts": []})
            await asyncio.sleep(_REPORT_SECONDS)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if message["type"] == "listen":
            listener = socket.socket(fileno=descriptors[0])
            listener.setblocking(False)
            self._start(self._accept(listener))
            self._channel.send({"type": "ready"})

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, or the client was gone already: others may still come in.
                self._log.warning("accept_failed", error=error.strerror)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._counters["accepted"] += 1
            whence = counted_as(address[0])
            if self._channel.waiting >= _PASSING_MAX or not self._waiting.enter(whence):
                self._counters["refused_full"] += 1
                connected.close()
                continue
            self._start(self._look(connected, whence, f"{address[0]}:{address[1]}"))

    async def _look(self, connected: socket.socket, whence: str, address: str) -> None:
        try:
            async with asyncio.timeout(HELLO_SECONDS_MAX):
                tenant, service = parse_server_name(await peek_server_name(connected))
        except (NoHello, BadName):
            self._counters["refused_name"] += 1
            connected.close()
        except (TimeoutError, OSError):
            self._counters["refused_slow"] += 1
            connected.close()
        else:
            self._counters["passed"] += 1
            wanted = {"tenant": tenant, "service": service, "address": address}
            self._channel.send({"type": "connection", **wanted}, connected)
        finally:
            self._waiting.leave(whence)


async def peek_server_name(connected: socket.socket) -> str:
    """The server name that a client asks for, its bytes left where they are; NoHello, OSError."""
    least = 1
    while True:
        # Otherwise what was looked at and left would wake us again and again.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        await _readable(connected)
        data = connected.recv(HELLO_BYTES_MAX, socket.MSG_PEEK)
        if len(data) < least:
            if connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                raise NoHello
            await asyncio.sleep(_RETRY_SECONDS)  # woken early: the system is short of memory
            continue
        found = server_name_of(data)
        if isinstance(found, str):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return found
        least = found.total


async def _readable(connected: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connected, note)
    try:
        await ready
    finally:
        loop.remove_reader(connected)


def counted_as(address: str) -> str:
    """What counts as one address: of IPv6 a network of 64 bits, which is one customer's."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
