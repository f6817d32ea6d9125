"""One managers' process with 1,000 hosts. `python -m tests.bench.dsm [HOSTS]`.

The hosts are simulated in a process of their own: each has a connection with its own certificate,
one group with a checkpoint every 5 s, a heartbeat every 10 s. The process is `holdfast dsm` over a
real PostgreSQL with the product's intervals. Its processor time is read from /proc, the rows that
it writes and the times that its loop was held up are its own counters. For the takeover a second
process is started, the first is killed, and the time is taken until a host accepts a command of the
second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import URL, create_engine, insert, text

from app.certificates.authority import HOST_LIFETIME, Authority, pem_of, sign_host
from app.certificates.service import load_tenant_authority
from app.hosts.enrolment import key_fingerprint
from app.kit.ids import Kind, new_uuid, parse, show
from app.models import Disk, Host, JoinToken, Machine, Vpg, VpgDisk, VpgStatus
from app.models import HostAssignment as AssignmentRow
from app.vpgs.settings import Settings
from host_agent.wire.names import agent_san
from infra.demo.processes import free_port
from tests.app.service import running_service
from tests.bench.cases import Case, run
from tests.bench.processes import BenchFailed
from tests.servers.dsm import ManagerProcess, Site
from tests.servers.dsm_host import HostFiles, Obeyed, SimulatedHost, client_tls
from tests.servers.postgres import running_cluster

BENCH = "dsm"
HOSTS = 1_000
CORE_SHARE_MAX = 0.25
TAKEOVER_SECONDS_MAX = 10.0
#: The window of a measurement may have a few hosts' rows more than its share.
ROWS_MAX = 1.05
_TENANTS = 10
_WARM_SECONDS = 30.0
_MEASURED_SECONDS = 120.0
_SHARED_SECONDS = 10.0
_CONNECT_SECONDS_MAX = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figures:
    """What was measured. `core` is a share of one core, `rows` a host and minute: of hosts' status,
    and of every table.
    """

    core: float
    rows: float
    all_rows: float
    stalls: float
    takeover_seconds: float


# ------------------------------------------------------------------ the world, by rows


def _rows_of(
    tenant_id: UUID, host_id: UUID, number: int, now: datetime
) -> list[tuple[Any, dict[str, Any]]]:
    """A host with one machine in one group."""
    machine, disk, vpg = (new_uuid(now) for _ in range(3))
    own = {"tenant_id": tenant_id}
    made = {**own, "created_at": now, "version": 1}
    settings = Settings().model_dump(mode="json")
    return [
        (Machine, {**made, "id": machine, "host_id": host_id, "name": f"m{number}", "uuid": None,
                   "labels": {}, "is_present": True, "seen_at": now}),
        (Disk, {**made, "id": disk, "machine_id": machine, "name": "vda", "bytes": 1 << 30,
                "source": {"kind": "path", "path": f"/disks/{number}"}, "is_present": True}),
        (Vpg, {**made, "id": vpg, "name": f"g{number}", "description": "", "labels": {},
               "lifecycle": "protecting", "recovery": "none", "settings": settings,
               "profile_id": None, "protected_site_id": None, "recovery_site_id": None,
               "store": "default"}),
        (VpgStatus, {**own, "vpg_id": vpg, "sync": "in_sync", "sla": "unknown",
                     "link": "connected", "backlog_bytes": 0}),
        (VpgDisk, {**own, "disk_id": disk, "vpg_id": vpg, "machine_id": machine,
                   "name": f"m{number}.vda", "added_at": now}),
        (AssignmentRow, {**own, "host_id": host_id, "version": 1, "held_version": 0,
                         "changed_at": now}),
    ]  # fmt: skip


class World:
    """Tenants whose hosts joined, in rows and in files."""

    def __init__(self, site: Site, url: URL) -> None:
        self._site, self._url = site, url
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    async def fill(self, count: int) -> list[str]:
        """The identities' files."""
        tools = self._site.service.tools
        files: list[str] = []
        engine = create_engine(self._url)
        for _ in range(_TENANTS):
            tenant = await self._site.service.make_tenant()
            shown = (await tenant.get("/v1/tenant")).json()["id"]
            tenant_id = parse(Kind.TENANT, shown)
            async with tools.database.tenant(tenant_id) as session:
                authority = await load_tenant_authority(session, tools.sealer)
            with engine.begin() as connection:
                files += [
                    self._add(connection, tenant_id, authority, number)
                    for number in range(count // _TENANTS)
                ]
        engine.dispose()
        return files

    def _add(self, connection: Any, tenant_id: UUID, authority: Authority, number: int) -> str:
        now = self._site.service.tools.clock.now()
        host_id, token_id = new_uuid(now), new_uuid(now)
        own = {"tenant_id": tenant_id, "created_at": now, "version": 1, "name": f"h{number}"}
        token = {**own, "id": token_id, "fingerprint": b"", "expires_at": now}
        host = {
            **own, "id": host_id, "state": "active", "agent_version": "1", "joined_by": token_id,
            "key_fingerprint": key_fingerprint(self._key.public_key()),
            "certificate_expires_at": now + HOST_LIFETIME,
        }  # fmt: skip
        rows = [(JoinToken, token), (Host, host)]
        for model, values in [*rows, *_rows_of(tenant_id, host_id, number, now)]:
            connection.execute(insert(model).values(**_fit(model, values)))
        uri = agent_san(show(Kind.TENANT, tenant_id), show(Kind.HOST, host_id))
        leaf = sign_host(authority, self._key.public_key(), uri, now)
        file = self._site.folder / f"{host_id}.pem"
        file.write_bytes(pem_of(leaf).encode() + authority.certificate_pem.encode() + self._pem)
        return str(file)


def _fit(model: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Only what the table has."""
    return {name: value for name, value in values.items() if name in model.__table__.columns}


# ------------------------------------------------------------------ hosts, in their own process


async def _simulate(told: dict[str, Any]) -> None:
    """Be all hosts; a line for a host's first command of each epoch, and when all have had one."""

    def watch(host: SimulatedHost) -> SimulatedHost:
        def on_obeyed(obeyed: Obeyed) -> None:
            if len(host.obeyed) < 2 or host.obeyed[-2].epoch != obeyed.epoch:
                print(json.dumps({"epoch": obeyed.epoch, "at": obeyed.at}), flush=True)
            del host.obeyed[:-2]

        host.on_obeyed = on_obeyed
        return host

    root, doors = Path(told["root"]), [tuple(door) for door in told["doors"]]
    hosts = [
        watch(SimulatedHost(doors, client_tls(HostFiles(Path(file), root))))
        for file in told["files"]
    ]
    tasks = []
    for host in hosts:
        tasks.append(asyncio.create_task(host.run()))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(_CONNECT_SECONDS_MAX):
        for host in hosts:
            await host.until(lambda host=host: bool(host.obeyed), _CONNECT_SECONDS_MAX)  # type: ignore[misc]
    print(json.dumps({"ready": len(hosts)}), flush=True)
    await asyncio.gather(*tasks)


class Hosts:
    """The process of the hosts, and what it tells."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, folder: Path, files: list[str], doors: list[tuple[str, int]]) -> Hosts:
        """Started, not yet connected."""
        told = folder / "hosts.json"
        root = str(folder / "root.pem")
        told.write_text(json.dumps({"files": files, "doors": doors, "root": root}))
        words = [sys.executable, "-m", "tests.bench.dsm", "--simulate", str(told)]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*words, stdout=pipe))

    async def told(self, name: str, after: float = 0.0) -> dict[str, Any]:
        """The next line that has this, said of a time later than `after`; BenchFailed."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            found: dict[str, Any] = json.loads(line)
            if name in found and found.get("at", after) >= after:
                return found
        raise BenchFailed("the simulated hosts ended")

    async def end(self) -> None:
        """For good."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


# ------------------------------------------------------------------ measuring


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _counter(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"holdfast_dsm_{name} "):
                return float(line.split()[1])
    raise BenchFailed(f"no counter {name}")


async def _measure(count: int) -> Figures:
    with (
        running_cluster() as cluster,
        cluster.database() as url,
        tempfile.TemporaryDirectory() as at,
    ):
        async with running_service(url) as service:
            site = Site(Path(at), service, {})
            files = await World(site, url).fill(count)
        return await _measured(site, files)


async def _measured(site: Site, files: list[str]) -> Figures:
    ports = [free_port() for _ in range(2)]
    started: list[ManagerProcess] = []
    hosts: Hosts | None = None
    try:
        first = await _start(started, site, ports[0])
        second_door = ("127.0.0.1", free_port())
        hosts = await Hosts.start(site.folder, files, [first.door, second_door])
        await hosts.told("ready")
        await asyncio.sleep(_WARM_SECONDS)
        steady = await _steady(site, first, ports[0], len(files))
        address = f"{second_door[0]}:{second_door[1]}"
        await _start(started, site, ports[1], control_listen=address)
        # It takes its share of the tenants first: what counts is what follows the kill.
        await asyncio.sleep(_SHARED_SECONDS)
        killed_at = time.monotonic()
        first.signal(signal.SIGKILL)
        found = await hosts.told("epoch", killed_at)
        return Figures(*steady, found["at"] - killed_at)
    finally:
        if hosts is not None:
            await hosts.end()
        for one in started:
            one.end()


async def _start(
    started: list[ManagerProcess], site: Site, port: int, **options: Any
) -> ManagerProcess:
    made = ManagerProcess(site, dsm_health_listen=f"127.0.0.1:{port}", **options)
    started.append(made)
    await made.started()
    return made


async def _steady(
    site: Site, process: ManagerProcess, port: int, count: int
) -> tuple[float, float, float, float]:
    """(share of a core, status rows, all rows a host and minute, stalls) while nothing changes."""

    def now() -> tuple[float, ...]:
        rows, stalls = _counter(port, "status_writes_total"), _counter(port, "loop_stalls_total")
        processor = _processor_seconds(process.process.pid)
        return time.monotonic(), processor, rows, _rows_written(site.service.url), stalls

    before = await asyncio.to_thread(now)
    await asyncio.sleep(_MEASURED_SECONDS)
    after = await asyncio.to_thread(now)
    seconds, processor, rows, written, stalls = (
        later - sooner for sooner, later in zip(before, after, strict=True)
    )
    minutes = count * seconds / 60
    return processor / seconds, rows / minutes, written / minutes, stalls


def _rows_written(url: URL) -> float:
    """By whomever, into whatever table, since the database was made."""
    engine = create_engine(url)
    with engine.connect() as connection:
        wanted = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"
        written = float(connection.execute(text(wanted)).scalar_one())
    engine.dispose()
    return written


def cases(count: int = HOSTS) -> Iterator[Case]:
    """The figures."""
    figures = asyncio.run(_measure(count))
    label = f"{count} hosts"
    for case, unit, ours, limit in (
        (f"{label}, share of a core", "core", figures.core, CORE_SHARE_MAX),
        (f"{label}, rows a host and minute", "rows", figures.rows, ROWS_MAX),
        (f"{label}, loop held up over 5 ms", "times", figures.stalls, 0.0),
        ("kill to the successor's command", "s", figures.takeover_seconds, TAKEOVER_SECONDS_MAX),
    ):
        yield Case(BENCH, case, unit, ours, "limit", limit, goal=1.0, better="lower")
    yield Case(
        BENCH, f"{label}, rows of every table", "rows", figures.all_rows, "one for each host", 1.0,
        better="lower", note="a host and minute: status, the group's, its checkpoints, its health",
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--simulate"]:
        asyncio.run(_simulate(json.loads(Path(sys.argv[2]).read_text())))
    else:
        sys.exit(run(cases(int(sys.argv[1]) if len(sys.argv) > 1 else HOSTS)))
