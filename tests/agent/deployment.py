"""A service around a real agent: its certificates, its data doors, and a manager in this process.

The manager speaks the real messages over the real door and plays the key service. What it is told
it writes down; what it says, the test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.certificates.authority import (
    Authority,
    key_pem_of,
    make_intermediate,
    make_root,
    pem_of,
    sign_host,
    sign_server,
)
from host_agent.control import client
from host_agent.control.errors import AgentNotRunning
from host_agent.wire import control, keyrequest
from host_agent.wire.control import (
    Answer,
    AssignedGroup,
    Assignment,
    AssignmentPush,
    Body,
    DataKey,
    DataKeyRequest,
    FromHost,
    Heartbeat,
    Taken,
    Welcome,
)
from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.names import INGEST, agent_san, parse_san, server_name
from infra.demo.processes import Process, Processes, free_port, json_output, tool

T = TypeVar("T")
SECONDS = 170.0


def tenant_id(number: int) -> str:
    """An identifier such as the service makes."""
    return f"ten_{number:026d}"


@dataclass
class TenantSide:
    """One tenant of the service: its authority, its keys, its ingest, its bucket."""

    id: str
    folder: Path
    authority: Authority
    key: TenantKey
    port: int
    groups: dict[str, GroupKey] = field(default_factory=dict)
    ingest: Process | None = None

    @property
    def store(self) -> str:
        return f"file://{self.folder / 'bucket'}"

    def group_key(self, vpg: str) -> GroupKey:
        """As the key service has it."""
        return self.groups.setdefault(vpg, GroupKey.make(self.key, vpg))


class Deployment:
    """The certificates and the data doors of a service. Nothing runs before it is asked for."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.processes = folder, processes
        self.now = datetime.now(UTC)
        self.root = make_root(self.now)
        self.root_file = folder / "root.crt"
        self.root_file.write_text(self.root.certificate_pem)
        self.tenants: dict[str, TenantSide] = {}

    def tenant(self, number: int) -> TenantSide:
        """A tenant, made when it is first asked for."""
        name = tenant_id(number)
        if name not in self.tenants:
            folder = self.folder / f"t{number}"
            (folder / "bucket").mkdir(parents=True)
            authority = make_intermediate(self.root, name, self.now)
            key = TenantKey.make(name)
            _write_secret(folder / "tenant.key", key.dump())
            self.tenants[name] = TenantSide(name, folder, authority, key, free_port())
        return self.tenants[name]

    def server(self, names: list[str], file: Path) -> Path:
        """A server's certificate and key in one file."""
        made = sign_server(self.root, names, datetime.now(UTC))
        _write_secret(file, made.certificate_pem.encode() + made.key_pem)
        return file

    def start_ingest(self, tenant: TenantSide) -> None:
        """Start the tenant's ingest and wait until it listens."""
        pem = self.server([server_name(tenant.id, INGEST)], tenant.folder / "ingest.pem")
        (tenant.folder / "hosts.crt").write_text(tenant.authority.certificate_pem)
        config = tenant.folder / "ingest.toml"
        config.write_text(
            f'tenant = "{tenant.id}"\nlisten = "127.0.0.1:{tenant.port}"\n'
            f'store = "{tenant.store}"\nstatus_socket = "{tenant.folder / "s"}"\n'
            "commit_seconds_min = 0.05\nprobe_seconds = 0.3\n"
            f'[tls]\ncertificate_file = "{pem}"\nkey_file = "{pem}"\n'
            f'client_ca_file = "{tenant.folder / "hosts.crt"}"\n'
        )
        argv: list[str | Path] = [tool("holdfast"), "ingest", "--config", config]
        process = self.processes.start(f"ingest-{tenant.folder.name}", argv)
        until(lambda: "event=listening" in process.log.read_text() or not process.is_running)
        process.require()
        tenant.ingest = process

    def write_identity(
        self, folder: Path, tenant: TenantSide, host: str, control_port: int
    ) -> Path:
        """The folder that `holdfast-agent enrol` would have written; it was made an hour ago."""
        folder.mkdir(mode=0o700, parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign_host(
            tenant.authority, key.public_key(), agent_san(tenant.id, host), self.now
        )
        chain = pem_of(certificate) + tenant.authority.certificate_pem
        _write_secret(folder / "agent.pem", chain.encode() + key_pem_of(key))
        (folder / "root.crt").write_text(self.root.certificate_pem)
        facts = {
            "api": "https://127.0.0.1:1",
            "tenant_id": tenant.id,
            "host_id": host,
            "uri": agent_san(tenant.id, host),
            "expires_at": certificate.not_valid_after_utc.isoformat(),
            "renew_at": (self.now + timedelta(hours=12)).isoformat(),
            "control_doors": [f"localhost:{control_port}"],
        }
        (folder / "identity.json").write_text(json.dumps(facts))
        return folder

    def export(self, tenant: TenantSide, vpg: str, name: str = "out") -> dict[str, bytes]:
        """The disks of a group at the newest moment, by their names."""
        folder = self.folder / name / vpg
        where = ["--store", tenant.store, "--tenant", tenant.id]
        where += ["--key-file", str(tenant.folder / "tenant.key"), "--group", vpg]
        words: list[str | Path] = [tool("holdfast"), "restore", "export", *where]
        words += ["--at", "latest-write", "--output", folder, "--json"]
        json_output(words, seconds=120)
        return {path.stem: path.read_bytes() for path in sorted(folder.rglob("*.raw"))}


def _write_secret(file: Path, data: bytes) -> None:
    file.touch(mode=0o600)
    file.write_bytes(data)


def until(is_so: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class HostView:
    """What the manager knows of a host. `heard`: all it said, in order."""

    tenant: str
    host: str
    heard: list[FromHost] = field(default_factory=list)
    connections: int = 0
    connection: ServerConnection | None = None

    def of(self, kind: type[T]) -> list[T]:
        """The messages of one sort."""
        return [message for message in list(self.heard) if isinstance(message, kind)]


class Manager:
    """A data services manager, in a thread of this process."""

    def __init__(self, deployment: Deployment, port: int = 0) -> None:
        self.deployment = deployment
        self.port = port or free_port()
        self.epoch, self.number, self.version = 1, 0, 0
        self.views: dict[tuple[str, str], HostView] = {}
        self.takes_answers = True
        self.gives_keys = True
        self.heartbeat_seconds = 0.2
        self._pem = deployment.server(["localhost"], deployment.folder / "control.pem")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server: Server | None = None

    # --- its life

    def start(self) -> None:
        """Open the door."""
        self._server = self._call(self._serve())

    def away(self) -> None:
        """Close the door and all connections; `start` comes back."""
        if self._server is not None:
            self._call(self._close(self._server))
            self._server = None

    def close(self) -> None:
        """End for good."""
        self.away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _serve(self) -> Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._pem)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.deployment.root_file)
        names = [Subprotocol(control.SUBPROTOCOL)]
        return await serve(
            self._talk, "127.0.0.1", self.port, ssl=context, subprotocols=names, max_size=1 << 20
        )

    @staticmethod
    async def _close(server: Server) -> None:
        server.close()
        await server.wait_closed()

    async def _talk(self, connection: ServerConnection) -> None:
        names = connection.transport.get_extra_info("peercert")["subjectAltName"]
        tenant, host = parse_san(names[0][1])
        view = self.views.setdefault((tenant, host), HostView(tenant, host))
        assert connection.request is not None
        assert connection.request.path == control.PATH
        with contextlib.suppress(ConnectionClosed):
            view.heard.append(self._read(await connection.recv()))
            now = time.time_ns()
            await connection.send(control.encode(Welcome(self.epoch, self.heartbeat_seconds, now)))
            view.connection = connection
            view.connections += 1
            async for text in connection:
                await self._hear(view, connection, self._read(text))
        if view.connection is connection:
            view.connection = None

    @staticmethod
    def _read(text: str | bytes) -> FromHost:
        message = control.decode_from_host(text)
        assert message is not None
        return message

    async def _hear(self, view: HostView, connection: ServerConnection, told: FromHost) -> None:
        if isinstance(told, DataKeyRequest) and self.gives_keys:
            await connection.send(control.encode(self._key(view, told)))
        if isinstance(told, Answer) and self.takes_answers:
            await connection.send(control.encode(Taken(told.epoch, told.number)))
        view.heard.append(told)

    def _key(self, view: HostView, told: DataKeyRequest) -> DataKey:
        """What the key service would answer: it believes the certificate, not the manager."""
        asked = msgspec.json.decode(bytes(told.asked))
        try:
            request = keyrequest.parse(asked, keyrequest.DataKeyRequest)
            leaf, intermediate = keyrequest.certificates_of(request)
            leaf.verify_directly_issued_by(intermediate)
            assert keyrequest.is_signed(request, leaf)
            assert (request.tenant, request.host) == (view.tenant, view.host)
            group = self.deployment.tenants[request.tenant].group_key(request.vpg)
            generation = bytes.fromhex(request.generation)
            key, wrapped = make_data_key(group, request.identity, generation)
            answer = keyrequest.answer_to(request, key, wrapped)
        except HoldfastError as error:
            return DataKey(told.request, error=control.failure_of(error))
        return DataKey(told.request, msgspec.Raw(msgspec.json.encode(answer)))

    # --- what tests do

    def view(self, tenant: TenantSide, host: str) -> HostView:
        """What is known of a host, once it has connected."""
        key = (tenant.id, host)
        until(lambda: key in self.views and self.views[key].connection is not None)
        return self.views[key]

    def send(self, view: HostView, message: control.FromManager) -> None:
        """Say something."""
        until(lambda: view.connection is not None)
        assert view.connection is not None
        self._call(view.connection.send(control.encode(message)))

    def command(self, view: HostView, body: Body) -> Answer:
        """Command something and wait for what became of it."""
        self.number += 1
        self.send(view, control.command(self.epoch, self.number, body))
        return self.answer(view, self.epoch, self.number)

    def answer(self, view: HostView, epoch: int, number: int) -> Answer:
        """The newest answer to (epoch, number), once there is one."""
        found: list[Answer] = []

        def is_there() -> bool:
            found[:] = [a for a in view.of(Answer) if (a.epoch, a.number) == (epoch, number)]
            return bool(found)

        until(is_there)
        return found[-1]

    def assign(
        self, view: HostView, tenant: TenantSide, groups: list[AssignedGroup], **changes: Any
    ) -> Answer:
        """Assign these groups."""
        self.number += 1
        self.version += 1
        made = Assignment(
            version=self.version,
            tenant=tenant.id,
            host=view.host,
            doors=[f"127.0.0.1:{tenant.port}"],
            server_name=server_name(tenant.id, INGEST),
            groups=groups,
        )
        made = msgspec.structs.replace(made, **changes)
        self.send(view, AssignmentPush(self.epoch, self.number, made))
        return self.answer(view, self.epoch, self.number)

    def facts(self, view: HostView, vpg: str) -> control.GroupFacts | None:
        """What the newest heartbeat says of a group."""
        beats = view.of(Heartbeat)
        groups = beats[-1].groups if beats else []
        return next((one for one in groups if one.vpg == vpg), None)

    def wait_facts(
        self, view: HostView, vpg: str, is_so: Callable[[control.GroupFacts], bool]
    ) -> control.GroupFacts:
        """The facts of a group, once they are so."""
        deadline = time.monotonic() + SECONDS
        while True:
            facts = self.facts(view, vpg)
            if facts is not None and is_so(facts):
                return facts
            assert time.monotonic() < deadline, facts
            time.sleep(0.02)


@dataclass
class HostSide:
    """One machine: its tap, its disks, its agent. Everything lies in one folder."""

    folder: Path
    rings: Path
    processes: Processes
    name: str
    tap: Process | None = None
    agent: Process | None = None

    @property
    def identity(self) -> Path:
        return self.folder / "id"

    @property
    def disks(self) -> Path:
        return self.folder / "disks"

    def make_disk(self, name: str, size: int = 16 << 20, folder: Path | None = None) -> Path:
        """An empty raw disk."""
        path = (folder or self.disks) / f"{name}.raw"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(size)
        return path

    def write_settings(self, more: str = "") -> None:
        """host.toml."""
        self.disks.mkdir(exist_ok=True)
        (self.identity / "host.toml").write_text(
            f'[tap]\nrun_dir = "{self.folder / "run"}"\n'
            f'[inventory]\nfolders = ["{self.disks}"]\n{more}'
        )

    def start_tap(self) -> None:
        words: list[str | Path] = [tool("holdfast-tap"), "--run-dir", self.folder / "run"]
        words += ["--state-dir", self.folder / "tap", "--ring-dir", self.rings]
        self.tap = self.processes.start("tap", words)
        until((self.folder / "run" / "tap.sock").exists)

    def start_agent(self, env: dict[str, str] | None = None) -> None:
        words: list[str | Path] = [tool("holdfast-agent"), "run", "--identity", self.identity]
        self.agent = self.processes.start("agent", words, env=env)

    def status(self) -> dict[str, Any]:
        """What the agent says here."""
        socket = client.socket_of_identity(self.identity)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return client.ask(socket, {"do": "status"})
            except AgentNotRunning:
                assert time.monotonic() < deadline
                time.sleep(0.05)


@contextlib.contextmanager
def made_manager(deployment: Deployment) -> Iterator[Manager]:
    """A manager whose door is open."""
    manager = Manager(deployment)
    try:
        manager.start()
        yield manager
    finally:
        manager.close()
