"""An ingest process in simulated time: the product's server, sessions, chains and statements."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tests.sim.loop import Process, SimLoop, offload
from tests.sim.machine import WallClock
from tests.sim.net import Connection, Network, ServerTransport
from tests.sim.store import Client, Service, sleep
from workers.ingest.asof import AsofName, AsofWriter
from workers.ingest.budget import Budget
from workers.ingest.config import LimitsConfig
from workers.ingest.connection import Connection as IngestConnection
from workers.ingest.decide import Rules
from workers.ingest.log import Log
from workers.ingest.server import Server
from workers.ingest.tools import Timing, Tools
from workers.storage.errors import StoreError
from workers.storage.retry import RetryingStore, RetryPolicy, RetryTools


class _Nowhere(io.StringIO):
    def write(self, _text: str) -> int:
        return 0


class SimServer(Server):
    """The server without its listener and without TLS: connections come from the network."""

    async def _handshake(
        self, connected: Any, connection: IngestConnection, address: str
    ) -> asyncio.Transport | None:
        del address
        transport = cast("ServerTransport", connected)
        await asyncio.sleep(0)
        self._handshakes -= 1
        transport.begin(connection)
        return None if transport.is_closing() else transport

    def accept(self, transport: ServerTransport) -> None:
        """A connection came in."""
        self._handshakes += 1
        task = asyncio.get_running_loop().create_task(self._serve(cast("Any", transport), "sim"))
        self._serving[task] = None
        task.add_done_callback(self._serving.pop)


@dataclass
class Place:
    """Where an ingest runs, and for whom. `machine` names it in the network."""

    name: str
    machine: str
    tenant: str
    budget_bytes: int


@dataclass
class Cloud:
    """What ingests share."""

    loop: SimLoop
    net: Network
    service: Service
    count: Callable[[str], None]
    trace: Callable[..., None]
    rng: Callable[[str], random.Random]


@dataclass
class Ingest:
    """One ingest's place; its process comes and goes."""

    place: Place
    cloud: Cloud
    process: Process | None = None
    server: SimServer | None = None
    budget: Budget | None = None
    lives: int = 0
    store_cut: bool = False
    is_leaving: bool = False
    clock: WallClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = WallClock(self.cloud.loop)
        self._rng = self.cloud.rng(f"{self.place.name}/process")

    def start(self) -> None:
        """A new process; one that lives stays."""
        if self.process is not None and self.process.is_alive:
            if not self.is_leaving:
                return
            self.process.kill()  # it took its time, as a supervisor sees it
        self.is_leaving = False
        cloud, place = self.cloud, self.place
        self.lives += 1
        process = self.process = Process(cloud.loop, f"{place.name}#{self.lives}")
        client = Client(cloud.service, cloud.loop, lambda: process.is_alive and not self.store_cut)
        tools = RetryTools(lambda s: sleep(cloud.loop, s), cloud.loop.time, self._rng)
        self.budget = Budget(place.budget_bytes)
        self.tools = Tools(
            rules=Rules(place.tenant, None, 0.2, 5.0),
            timing=Timing(),
            store=RetryingStore(client, RetryPolicy(), tools),
            offload=offload,
            clock=self.clock,
            token=self._rng.randbytes,
            budget=self.budget,
            log=Log(self.clock.wall_ns, _Nowhere()),
        )
        self.server = SimServer(cast("Any", None), LimitsConfig(), self.tools)
        process.start(self._statements(self.server, self.tools))
        cloud.net.listen(place.name, self._accept)
        process.on_death.append(lambda: cloud.net.listen(place.name, None))
        cloud.trace(place.name, "ingest", self.lives)

    def _accept(self, connection: Connection) -> None:
        process, server = self.process, self.server
        assert process is not None
        assert server is not None
        connection.complete(process, self.place.machine)
        host = connection.host.partition("+")[0]
        name = f"spiffe://holdfast/tenant/{self.place.tenant}/agent/{host}"
        transport = ServerTransport(connection, process, name)
        process.call(server.accept, transport)

    async def _statements(self, server: SimServer, tools: Tools) -> None:
        asof = AsofWriter(tools.store, AsofName(self.place.tenant, tools.token(16)))
        is_loaded = False
        while True:
            with contextlib.suppress(StoreError):
                if not is_loaded:
                    await tools.offload(asof.load)
                    is_loaded = True
                await asyncio.sleep(10.0)
                if asof.gather(server.all_facts(), tools.clock.monotonic()):
                    wall = tools.clock.wall_ns()
                    await tools.offload(lambda: asof.write(wall))  # noqa: B023

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.is_alive:
            self.cloud.trace(self.place.name, "ingest killed")
            self.process.kill()

    def stop(self) -> None:
        """An orderly stop; `start` begins the next."""
        process, server = self.process, self.server
        if process is None or not process.is_alive or process.is_stopped:
            return
        self.is_leaving = True
        self.cloud.net.listen(self.place.name, None)
        assert server is not None

        async def leave() -> None:
            await server.stop()
            # Not from within: the process would end the task that ends it.
            self.cloud.loop.call_soon(process.kill, context=contextvars.Context())

        process.start(leave())
