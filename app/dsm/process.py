"""The data services managers' process: `holdfast dsm`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from prometheus_client import generate_latest
from pydantic import Field

from app.database.schema import check_schema
from app.database.sessions import Database
from app.database.settings import DatabaseSettings
from app.datanodes.gateway import NodeGateway, NodeTools
from app.dsm import assignments
from app.dsm.assignments import Place, Route
from app.dsm.desk import DeskTools, WorkDesk
from app.dsm.door import TlsFiles, client_context, server_context
from app.dsm.engine import Agenda
from app.dsm.fleet import Fleet
from app.dsm.gateway import Gateway, GatewayOptions
from app.dsm.intake import Intake, IntakeTools
from app.dsm.lease import LeaseKeeper, LeaseTimes
from app.dsm.links import Owner
from app.dsm.manager import DueKey, Means
from app.dsm.memory import collect_often
from app.dsm.metrics import Metrics
from app.dsm.recorder import Recorder, RecorderOptions
from app.dsm.relay import RelayServer, RelayTls, RemoteOwner
from app.dsm.revocations import Out, Revocations
from app.dsm.trouble import Trouble
from app.dsm.watchdog import watched_loop
from app.keys.client import SocketKeys
from app.keys.port import KeyService, NoKeys
from app.kit.clock import SystemClock
from app.kit.health_door import HealthDoor
from app.kit.logs import begin_logging, say
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.kit.settings import Address, BadSettings, host_and_port

#: A new owner is noticed so soon; a takeover must be over 10 s after the death of the old one.
_ROUTES_SECONDS = 0.5
#: Routes of the last seconds are read again each time: a transaction may be slow to commit.
_ROUTES_OVERLAP_SECONDS = 20.0
_TAKEN_AT_ONCE = 100
_CHANGED_AT_ONCE = 20
_STOP_SECONDS_MAX = 10.0


class DsmSettings(DatabaseSettings):
    """What the process is told."""

    control_listen: Address = "127.0.0.1:7444"
    relay_listen: Address = "127.0.0.1:0"
    relay_address: Address | None = Field(
        default=None, description="Where other processes reach the relay; None: as it listens."
    )
    dsm_health_listen: Address | None = Field(
        default=None, description="Plain HTTP on loopback: /health, /ready and /metrics."
    )
    dsm_certificate_file: Path = Field(description="PEM: this process's certificate and key.")
    root_certificate_file: Path
    keys_socket: Path | None = None
    data_doors: tuple[Address, ...] = Field(
        default=(), description="Of data nodes that the deployment does not list."
    )
    broker_url: str | None = Field(
        default=None, description="Where workers are woken for what is due; None: nobody is."
    )
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    lease_renew_seconds: float = 2.0
    lease_act_seconds: float = 6.0
    lease_gone_seconds: float = 8.0
    command_poll_seconds: float = Field(default=0.5, gt=0)
    revocation_poll_seconds: float = Field(default=5.0, gt=0, le=25)
    checkpoint_record_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long checkpoints wait to be written together; so old may the RPO be that "
        "is shown.",
    )

    @property
    def lease_times(self) -> LeaseTimes:
        """BadSettings."""
        try:
            return LeaseTimes(
                self.lease_renew_seconds, self.lease_act_seconds, self.lease_gone_seconds
            )
        except ValueError as error:
            raise BadSettings(f"HOLDFAST_LEASE_..._SECONDS: {error}") from None

    @property
    def tls_files(self) -> TlsFiles:
        """What its doors use."""
        return TlsFiles(self.dsm_certificate_file, self.root_certificate_file)


def run_dsm(settings: DsmSettings) -> int:
    """Run until SIGTERM or SIGINT, which give the lease up. The exit code; BadSettings."""
    begin_logging(settings.log_level)
    metrics = Metrics()

    def make_loop() -> asyncio.AbstractEventLoop:
        return watched_loop(lambda _: metrics.stalls.inc())

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_run(settings, metrics))
    return 0


async def _run(settings: DsmSettings, metrics: Metrics) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    process = DsmProcess(settings, metrics)
    try:
        await process.start()
        # What lives as long as the process is not looked at again: a long pause for nothing.
        gc.collect()
        gc.freeze()
        metrics.stalls.reset()
        say("started", control_port=process.control_port)
        await process.serve(stopping)
    finally:
        await process.stop()
        say("stopped")


@dataclass(frozen=True)
class _Parts:
    """What the process consists of, made by `start`."""

    lease: LeaseKeeper
    fleet: Fleet
    recorder: Recorder
    desk: WorkDesk
    intake: Intake
    gateway: Gateway
    relay: RelayServer
    revocations: Revocations


class DsmProcess:
    """One process: its doors, its lease, the managers that it owns."""

    def __init__(self, settings: DsmSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.database = Database(settings.database)
        self.control_port = 0
        self.relay_port = 0
        self._now = asyncio.get_running_loop().time
        self._routes: dict[Place, Route] = {}
        self._remote: dict[str, RemoteOwner] = {}
        self._health: HealthDoor | None = None

    async def start(self) -> None:
        """Open the doors and enter the lease; BadSettings, Problem."""
        settings, files = self.settings, self.settings.tls_files
        await check_schema(self.database)
        server, client = server_context(files), client_context(files)
        root = x509.load_pem_x509_certificate(files.root.read_bytes())
        self._tls = RelayTls(server, client, root)
        agenda: Agenda[DueKey] = Agenda()
        means = Means(
            now=self._now,
            wall=self._wall,
            may_act=lambda: self.parts.lease.may_act(),
            heartbeat_seconds=settings.heartbeat_seconds,
            metrics=self.metrics,
            agenda=agenda,
        )
        fleet = Fleet(means)
        relay = RelayServer(self._tls, fleet)
        self.relay_port = await relay.start(*host_and_port(settings.relay_listen))
        lease = LeaseKeeper(self.database, self._relay_address(), settings.lease_times)
        lease.on_lost = self._lease_lost
        self.parts = self._assemble(lease, fleet, relay)
        await lease.begin()
        await self._take()
        self.control_port = await self.parts.gateway.start()
        await self._open_health()

    def _assemble(self, lease: LeaseKeeper, fleet: Fleet, relay: RelayServer) -> _Parts:
        settings, database, metrics = self.settings, self.database, self.metrics
        trouble, seconds = Trouble(metrics), settings.checkpoint_record_seconds
        sealer = Sealer(settings.secret)
        options = RecorderOptions(seconds, self._now, self._wall, lease.may_act, trouble)
        recorder = Recorder(database, options, metrics)
        doors = settings.data_doors
        tools = DeskTools(database, self._keys(), recorder, doors, self._wall, trouble)
        desk = WorkDesk(tools, fleet)
        intake = Intake(
            IntakeTools(
                database,
                lambda: lease.id,
                lease.may_act,
                self._now,
                self._wall,
                settings.command_poll_seconds,
                sealer,
                metrics,
                trouble,
            ),
            fleet,
            desk,
        )
        host, port = host_and_port(settings.control_listen)
        nodes = NodeGateway(NodeTools(database, sealer, SystemClock()))
        gateway_options = GatewayOptions(
            host, port, self._tls.server, settings.heartbeat_seconds, nodes, recorder.twins
        )
        gateway = Gateway(gateway_options, database, self._owner_of, metrics)
        revocations = Revocations(database, settings.revocation_poll_seconds, self._wall)
        return _Parts(lease, fleet, recorder, desk, intake, gateway, relay, revocations)

    def _keys(self) -> KeyService:
        socket = self.settings.keys_socket
        return NoKeys() if socket is None else SocketKeys(socket)

    def _relay_address(self) -> str:
        host, _ = host_and_port(self.settings.relay_listen)
        return self.settings.relay_address or f"{host}:{self.relay_port}"

    async def _open_health(self) -> None:
        if self.settings.dsm_health_listen is not None:
            registry = self.metrics.registry
            self._health = HealthDoor(self._is_ready, lambda: generate_latest(registry))
            await self._health.start(*host_and_port(self.settings.dsm_health_listen))

    async def _is_ready(self) -> bool:
        return self.parts.lease.may_act()

    @staticmethod
    def _wall() -> datetime:
        return SystemClock().now()

    async def serve(self, stopping: asyncio.Event) -> None:
        """Work until told to stop. Raises what any part ended with."""
        parts = self.parts
        work: Sequence[Awaitable[None]] = (
            parts.lease.run(),
            parts.fleet.run_checkpoints(),
            parts.fleet.run_reviews(),
            parts.recorder.run(),
            parts.intake.run(),
            parts.revocations.run(self._shut_out),
            _often(self._follow, _ROUTES_SECONDS),
            collect_often(lambda: parts.gateway.closed),
            *self._jobs(),
        )
        tasks = [asyncio.ensure_future(one) for one in work]
        told = asyncio.ensure_future(stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, told], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {told}:
                task.result()
        finally:
            for task in (*tasks, told):
                task.cancel()
            await asyncio.gather(*tasks, told, return_exceptions=True)

    def _jobs(self) -> Sequence[Awaitable[None]]:
        """Tell workers what is due: in this process because it runs everywhere and always."""
        broker = self.settings.broker_url
        if broker is None:
            return ()
        # Only who has a broker needs its library.
        from app.jobs.relay import relay_jobs, sender

        return (relay_jobs(self.database, sender(broker), self.settings.command_poll_seconds),)

    async def stop(self) -> None:
        """Give the lease and the places up, write what waits, close the doors."""
        if hasattr(self, "parts"):
            parts = self.parts
            parts.lease.permission.end()
            with contextlib.suppress(Problem, TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS_MAX):
                    await parts.recorder.write(is_last=True)
                    await self._release()
            for place in list(parts.fleet.managers):
                parts.fleet.resign(place)
            await parts.gateway.stop()
            await parts.relay.stop()
            await parts.desk.close()
        for remote in self._remote.values():
            await remote.close()
        if self._health is not None:
            await self._health.stop()
        await self.database.close()

    async def _release(self) -> None:
        async with self.database.system() as session:
            await assignments.give_up(session, self.parts.lease.id)
            await session.commit()
        await self.parts.lease.release()

    # ------------------------------------------------------------------ who owns what

    def _owner_of(self, place: Place) -> Owner | None:
        """For the gateway: who is to hear of this place's hosts."""
        if place in self.parts.fleet.managers:
            return self.parts.fleet
        route = self._routes.get(place)
        if route is None or route.process is None or route.process == self.parts.lease.id:
            return None
        if route.address not in self._remote:
            self._remote[route.address] = RemoteOwner(host_and_port(route.address), self._tls)
        return self._remote[route.address]

    def _lease_lost(self) -> None:
        self.metrics.leases_lost.inc()
        for place in list(self.parts.fleet.managers):
            self._resign(place)

    def _resign(self, place: Place) -> None:
        self.parts.fleet.resign(place)
        self.parts.intake.drop_place(place)
        self._routes.pop(place, None)
        self.parts.gateway.route_changed(place)

    async def _follow(self) -> None:
        """Take what is free, give up what is too much, notice who has what."""
        try:
            if self.parts.lease.may_act():
                await self._take()
            await self._read_routes()
        except Problem as problem:
            if not problem.retryable:
                raise

    async def _take(self) -> None:
        lease = self.parts.lease
        async with self.database.system() as session:
            await assignments.ensure_commanded(session)
            more = await assignments.wanted_more(session, lease.id)
            taken = await assignments.take(session, lease.id, max(0, min(more, _TAKEN_AT_ONCE)))
            surplus = list(self.parts.fleet.managers)[:-more] if more < 0 else []
            if surplus:
                await assignments.give_up(session, lease.id, surplus)
            await session.commit()
        for place in surplus:
            self._resign(place)
        for number, route in enumerate(taken, 1):
            self.metrics.takeovers.inc()
            self._routes[route.place] = route
            self.parts.fleet.adopt(route, self.parts.desk)
            self.parts.gateway.route_changed(route.place)
            if number % _CHANGED_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _read_routes(self) -> None:
        unknown = [place for place in self.parts.gateway.places if place not in self._routes]
        async with self.database.system() as session:
            for place in unknown:
                await assignments.ensure_place(session, place)
            found = await assignments.changed_routes(session, _ROUTES_OVERLAP_SECONDS)
            if unknown:
                found += await assignments.routes_of(session, unknown)
            await session.commit()
        for number, route in enumerate(found, 1):
            self._learn(route)
            if number % _CHANGED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _learn(self, route: Route) -> None:
        before = self._routes.get(route.place)
        if before == route or (before is not None and before.epoch > route.epoch):
            return
        ours = self.parts.fleet.manager_of(route.place)
        if ours is not None and route.process != self.parts.lease.id:
            if route.epoch >= ours.route.epoch:
                self._resign(route.place)  # somebody else's, although we did not notice
        elif ours is not None or route.process == self.parts.lease.id:
            return
        self._routes[route.place] = route
        self.parts.gateway.route_changed(route.place)

    def _shut_out(self, out: Out) -> None:
        gateway = self.parts.gateway
        gateway.drop_hosts(out.hosts, self._wall())
        gateway.drop_where(
            lambda peer: peer.place.tenant_id in out.tenants, "the tenant is suspended"
        )
        self.parts.fleet.forget_hosts(out.hosts)
        gateway.look_for_calm()


async def _often(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)
