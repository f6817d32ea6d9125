"""A tenant with a journal, a restore process at a door of its own, and hosts that come to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from app.certificates.authority import (
    Authority,
    ServerCertificate,
    key_pem_of,
    make_intermediate,
    make_root,
    pem_of,
    sign_host,
    sign_server,
)
from host_agent.recovery.restore import Means, Progress, Restored, Wanted, restore
from host_agent.stream.link import Credentials
from host_agent.wire.envelope import public_of
from host_agent.wire.keys import GroupKey
from host_agent.wire.names import RESTORE, Identity, agent_san, server_name
from host_agent.wire.serving import ServingRecord, StoreAccess
from host_agent.wire.ticket import Ticket, issue, seal_group_key
from tests.model.builder import JournalBuilder
from workers.ingest.log import Log
from workers.ingest.tls import ServerIdentity
from workers.restore.door import TenantRestores, open_service
from workers.storage.local import LocalStore
from workers.supervisor.port import ServiceStart

TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
OTHER_TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x11"
BLOCK = 128 * 1024
DISK = 8 << 20
_START_SECONDS_MAX = 60.0
_numbers = itertools.count()


@dataclass
class World:
    """Everything that a deployment has of one tenant."""

    folder: Path
    tenant: str = TENANT
    root: Authority = field(default_factory=lambda: make_root(datetime.now(UTC)))

    def __post_init__(self) -> None:
        self.now = datetime.now(UTC)
        self.intermediate = make_intermediate(self.root, self.tenant, self.now)
        self.server = self.new_server()
        store = LocalStore(self.folder / "store", create=True)
        identity = Identity(self.tenant, "vpg-1", "source-1")
        self.builder = JournalBuilder(store, identity, rng=random.Random(5))

    def new_server(self) -> ServerCertificate:
        """A certificate of the restore process."""
        return sign_server(self.root, [server_name(self.tenant, RESTORE)], self.now)

    @property
    def record(self) -> ServingRecord:
        """What a data node knows of the tenant."""
        access = StoreAccess(f"file://{self.folder / 'store'}", "folder")
        return ServingRecord(self.tenant, 1, self.intermediate.certificate_pem, access, [])

    @property
    def start(self) -> ServiceStart:
        """What its restore process begins with."""
        identity = ServerIdentity(self.server.certificate_pem, self.server.key_pem.decode())
        return ServiceStart(self.record, identity, Log(time.time_ns))

    def credentials(self, host: str = "target-1") -> Credentials:
        """Files of a host of the tenant."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = agent_san(self.tenant, host)
        leaf = sign_host(self.intermediate, key.public_key(), uri, self.now)
        number = next(_numbers)
        pem, ca = self.folder / f"{host}-{number}.pem", self.folder / f"ca-{number}.pem"
        pem.write_text(pem_of(leaf) + self.intermediate.certificate_pem + key_pem_of(key).decode())
        ca.write_text(self.root.certificate_pem)
        return Credentials(ca, pem, pem)

    def ticket(
        self,
        *,
        key: GroupKey | None = None,
        by: Authority | None = None,
        servers: Sequence[ServerCertificate] = (),
        **changes: object,
    ) -> str:
        """A ticket for `latest-write` of the journal, or a changed one."""
        ticket_id = random.Random().randbytes(16).hex()
        doors = [
            seal_group_key(key or self.builder.group_key, ticket_id, public_key(server))
            for server in servers or [self.server]
        ]
        made = Ticket(
            version=1,
            id=ticket_id,
            tenant=self.tenant,
            vpg="vpg-1",
            streams=["source-1"],
            at="latest-write",
            host="target-1",
            begin_by=int(time.time()) + 900,
            end_by=int(time.time()) + 86_400,
            keys=doors,
        )
        return issue(msgspec.structs.replace(made, **changes), (by or self.intermediate).key)

    def fill(self, blocks: int = 24) -> bytes:
        """Blocks apart from each other, and what the disk then holds."""
        image = bytearray(DISK)
        self.builder.generation({"root": DISK, "empty": BLOCK})
        self.builder.end()
        for number in range(blocks):
            at = number * 2 * BLOCK + 512 * number
            data = self.builder.rng.randbytes(BLOCK)
            image[at : at + BLOCK] = data
            self.builder.write(0, at, data)
            if number % 8 == 7:
                self.builder.segment()
        self.builder.segment()
        return bytes(image)


def public_key(server: ServerCertificate) -> bytes:
    """To which a ticket's key is sealed."""
    key = load_pem_private_key(server.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return public_of(key)


@contextlib.asynccontextmanager
async def serving(start: ServiceStart) -> AsyncIterator[tuple[str, TenantRestores]]:
    """The service behind a listener in this process: (address, service)."""
    service = await open_service(start)
    assert isinstance(service, TenantRestores)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    accepting = asyncio.create_task(accept(service, listener))
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", service
    finally:
        accepting.cancel()
        listener.close()
        await service.stop()


async def accept(service: TenantRestores, listener: socket.socket) -> None:
    """Hand connections over, as a data node's router does."""
    loop = asyncio.get_running_loop()
    while True:
        connected, address = await loop.sock_accept(listener)
        connected.setblocking(False)
        service.take(connected, f"{address[0]}:{address[1]}")


async def fetch(
    world: World,
    doors: Sequence[str],
    folder: Path,
    *,
    ticket: str | None = None,
    credentials: Credentials | None = None,
    progress: list[Progress] | None = None,
    patience: float = 30.0,
) -> Restored:
    """As a host does it."""
    wanted = Wanted(ticket or world.ticket(), doors, credentials or world.credentials(), folder)

    async def soon(_seconds: float) -> None:
        await asyncio.sleep(0.05)

    def report(now: Progress) -> None:
        if progress is not None:
            progress.append(Progress(now.phase, now.bytes_total, now.bytes_done))

    return await restore(wanted, report, Means(sleep=soon, patience_seconds=patience))


class DoorProcess:
    """The service as a process of its own, which may be killed and started again."""

    def __init__(self, world: World) -> None:
        self._file = world.folder / "door.json"
        start = world.start
        told = {
            "record": msgspec.to_builtins(start.record),
            "certificate": start.identity.certificate,
            "key": start.identity.key,
        }
        self._file.write_text(json.dumps(told))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Run it and wait until it listens."""
        words = [sys.executable, "-m", "tests.restore.door", str(self._file), str(self.port)]
        self.process = subprocess.Popen(words, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + _START_SECONDS_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise AssertionError("the restore process does not listen")

    def kill(self) -> None:
        """As the kernel does it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def door_process(world: World) -> Iterator[DoorProcess]:
    """A running one."""
    door = DoorProcess(world)
    door.start()
    try:
        yield door
    finally:
        door.kill()


async def _main(file: Path, port: int) -> None:
    told = json.loads(file.read_text())
    record = msgspec.convert(told["record"], ServingRecord)
    identity = ServerIdentity(told["certificate"], told["key"])
    service = await open_service(ServiceStart(record, identity, Log(time.time_ns)))
    assert isinstance(service, TenantRestores)
    listener = socket.create_server(("127.0.0.1", port))
    listener.setblocking(False)
    await accept(service, listener)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2])))


def later(seconds: float) -> datetime:
    """An instant from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)
