"""The API beside bare FastAPI routes. `python -m tests.bench.api [TENANTS]`.

1,000 tenants with 10 groups each and a day of their checkpoints, one each 5 s, lie in a durable
PostgreSQL on a real disk. `holdfast api` with its key service, and a process of routes that do one
equal query each (`bare`), are asked by 16 clients in turns of some seconds, over TLS. A figure is
the median over the rounds: of their medians, of their 99th percentiles. What is made carries an
Idempotency-Key, as the service's own client sends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import URL, create_engine, text

from app.database.migrate import prepare_database, upgrade
from app.embedded.folder import Folder
from app.embedded.postgres import DATABASE, Postgres, PostgresSettings
from app.embedded.processes import Doors, Installation, programs_of
from app.embedded.trust import root_of, sealer_of, write_server_file
from app.kit.clock import SystemClock
from app.kit.ids import Kind, show
from infra.demo.processes import free_port
from tests.bench.asking import HOST, Asked, Server, ask, request
from tests.bench.cases import Case, run
from tests.bench.processes import START_SECONDS_MAX, BenchFailed, Process
from tests.bench.tenants import Filler, KnownTenant, bytes_of
from tests.bench.workspace import REAL

BENCH = "api"
TENANTS, GROUPS, CLIENTS = 1_000, 10, 16
MEDIAN_MAX, P99_MAX = 2.0, 3.0
DATABASE_GIB_MAX = 4.0
_ROUNDS, _ROUND_SECONDS, _WARM_SECONDS = 5, 4.0, 2.0
_PEER = "a bare route, one equal query"
#: The clients share few credentials, and the bare routes count nobody.
_UNLIMITED = {
    "HOLDFAST_API_REQUESTS_PER_SECOND": "1e6",
    "HOLDFAST_API_TENANT_REQUESTS_PER_SECOND": "1e6",
}

What = Literal["list", "get", "create", "timeline"]
WHATS: tuple[What, ...] = ("list", "get", "create", "timeline")


@dataclass(frozen=True)
class Servers:
    """Both of them, and who may ask what."""

    ours: Server
    bare: Server
    tenants: list[KnownTenant]


# ------------------------------------------------------------------ the world


@contextmanager
def loaded_folder(tenants: int) -> Iterator[tuple[Folder, URL, list[KnownTenant]]]:
    """A folder with secrets, keys and a running database that is full and durable."""
    made = Path(tempfile.mkdtemp(prefix="hfb-", dir=REAL))
    made.chmod(0o755)  # the database's unprivileged user has to reach its part
    folder, now = Folder(made), SystemClock().now()
    try:
        sealer, root = sealer_of(folder), root_of(folder, now)
        write_server_file(folder, root, [HOST], now)
        # What is only loaded may be lost with the machine.
        server = Postgres(folder.postgres, PostgresSettings(is_durable=False))
        server.start()
        try:
            url = _new_database(server)
            known = Filler(url, sealer, made / "keys", now).fill(tenants, GROUPS)
        finally:
            server.stop()
        server = Postgres(folder.postgres)
        server.start()
        try:
            yield folder, url, known
        finally:
            server.stop()
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _new_database(server: Postgres) -> URL:
    engine = create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {DATABASE}"))
    engine.dispose()
    url = server.url()
    prepare_database(url)
    upgrade(url)
    return url


@contextmanager
def running_servers(folder: Folder, url: URL, tenants: list[KnownTenant]) -> Iterator[Servers]:
    """The API with its key service, and the bare routes."""
    with ExitStack() as stack:

        def start(name: str, words: list[str], told: dict[str, str]) -> Process:
            environment = {**os.environ, **told}
            return stack.enter_context(Process(name, words, folder.path, environment))

        ports = [free_port() for _ in range(2)]
        doors = Doors(HOST, HOST, ports[0], 0, 0)
        wanted = Installation(folder, url.render_as_string(hide_password=False), doors)
        programs = {program.name: program for part in programs_of(wanted) for program in part}
        keys, api = programs["keys"], programs["api"]
        start("keys", list(keys.words), dict(keys.environment)).wait_for(folder.keys_socket)
        bare_told = {**api.environment, "HOLDFAST_API_LISTEN": f"{HOST}:{ports[1]}"}
        started = [
            start("api", list(api.words), {**api.environment, **_UNLIMITED}),
            start("bare", [sys.executable, "-m", "tests.bench.bare"], bare_told),
        ]
        for process, port in zip(started, ports, strict=True):
            _wait_for(process, port)
        ours, bare = (
            Server(port, folder.root_file, process.pid)
            for process, port in zip(started, ports, strict=True)
        )
        yield Servers(ours, bare, tenants)


def _wait_for(process: Process, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError as error:
            process.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"{process.name} does not listen: {process.log_end()}") from error
            time.sleep(0.05)
        else:
            return


# ------------------------------------------------------------------ what is asked


def turns_of(what: What, tenants: list[KnownTenant], *, is_bare: bool) -> Iterator[bytes]:
    """Requests without end, of any tenant, of any group: the same for both servers."""
    chosen = random.Random(7)
    while True:
        tenant = chosen.choice(tenants)
        vpg = chosen.choice(tenant.vpgs)
        head, token = (f"/tenants/{tenant.id}", "") if is_bare else ("/v1", tenant.token)
        shown = str(vpg) if is_bare else show(Kind.VPG, vpg)
        if what == "create":
            body = json.dumps({"name": f"made {secrets.token_hex(8)}"}).encode()
            key = "" if is_bare else secrets.token_hex(16)
            yield request("POST", f"{head}/vpgs", token, body, key)
        else:
            yield request("GET", f"{head}/vpgs{_ENDS[what].format(shown)}", token)


_ENDS: dict[What, str] = {"list": "", "get": "/{}", "timeline": "/{}/timeline"}


async def measure(servers: Servers, what: What) -> tuple[list[Asked], list[Asked]]:
    """Rounds of the API and of the bare routes, in turns."""
    sides = [
        (servers.ours, turns_of(what, servers.tenants, is_bare=False)),
        (servers.bare, turns_of(what, servers.tenants, is_bare=True)),
    ]
    rounds: list[list[Asked]] = [[], []]
    for server, turns in sides:
        await ask(server, turns, CLIENTS, _WARM_SECONDS)
    for _ in range(_ROUNDS):
        for place, (server, turns) in enumerate(sides):
            rounds[place].append(await ask(server, turns, CLIENTS, _ROUND_SECONDS))
    return rounds[0], rounds[1]


# ------------------------------------------------------------------ cases


def cases(tenants: int = TENANTS) -> Iterator[Case]:
    """The size of the database, then median and 99th percentile of each kind of request."""
    with loaded_folder(tenants) as (folder, url, known):
        size = bytes_of(url) / (1 << 30)
        label = f"{tenants} tenants, {tenants * GROUPS} groups, a day of checkpoints"
        yield Case(
            BENCH, label, "GiB", size, "limit", DATABASE_GIB_MAX, goal=1.0, better="lower",
            note=f"{tenants * GROUPS * 17280 / 1e6:.0f} million checkpoints",
        )  # fmt: skip
        with running_servers(folder, url, known) as servers:
            for what in WHATS:
                yield from _cases_of(what, *asyncio.run(measure(servers, what)))


def _cases_of(what: What, ours: list[Asked], bare: list[Asked]) -> Iterator[Case]:
    rates = [statistics.median(one.rate for one in side) for side in (ours, bare)]
    costs = [statistics.median(one.processor for one in side) * 1e3 for side in (ours, bare)]
    note = (
        f"{rates[0]:.0f}/s beside {rates[1]:.0f}/s; processor time of the server "
        f"{costs[0]:.2f} ms beside {costs[1]:.2f} ms a request"
    )
    for name, goal in (("median", MEDIAN_MAX), ("p99", P99_MAX)):
        first, second = (
            statistics.median(getattr(one, f"{name}_ms") for one in side) for side in (ours, bare)
        )
        case = f"{what}, {CLIENTS} clients, {name}"
        yield Case(BENCH, case, "ms", first, _PEER, second, goal, better="lower", note=note)


if __name__ == "__main__":
    sys.exit(run(cases(int(sys.argv[1]) if len(sys.argv) > 1 else TENANTS)))
