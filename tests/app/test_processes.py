"""Each process of the service: whether it is ready, its figures, its log, and what it refuses."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from app.certificates.authority import make_root, sign_server
from app.database.roles import APP, SYSTEM
from app.database.schema import check_schema, is_behind, newest_revision
from app.embedded.processes import installed, listens_on
from app.embedded.supervisor import Program, Supervisor
from app.kit.clock import SystemClock
from app.kit.settings import BadSettings
from infra.demo.processes import free_port
from tests.app.service import SECRET, Service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
HOLDFAST = Path(sys.executable).with_name("holdfast")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="proc-") as made:
        yield Path(made)


def told(url: URL, folder: Path) -> dict[str, str]:
    """What a process with a database is told."""
    root = make_root(SystemClock().now())
    made = sign_server(root, ["localhost"], SystemClock().now())
    (folder / "secret").write_bytes(SECRET)
    (folder / "root.crt").write_text(root.certificate_pem)
    (folder / "root.key").write_bytes(root.key_pem)
    (folder / "server.pem").write_bytes(
        made.certificate_pem.encode() + root.certificate_pem.encode() + made.key_pem
    )
    return {
        "HOLDFAST_DATABASE_URL": url.render_as_string(hide_password=False),
        "HOLDFAST_SECRET_FILE": str(folder / "secret"),
        "HOLDFAST_ROOT_CERTIFICATE_FILE": str(folder / "root.crt"),
        "HOLDFAST_ROOT_KEY_FILE": str(folder / "root.key"),
        "HOLDFAST_API_CERTIFICATE_FILE": str(folder / "server.pem"),
        "HOLDFAST_DSM_CERTIFICATE_FILE": str(folder / "server.pem"),
        "HOLDFAST_KEYS_DIRECTORY": str(folder / "keys"),
        "HOLDFAST_KEYS_SOCKET": str(folder / "keys.sock"),
        "HOLDFAST_BROKER_URL": f"redis+socket://{folder}/none.sock",
        "HOLDFAST_STORE_URL": f"file://{folder}/store",
        "HOLDFAST_CONTROL_LISTEN": "127.0.0.1:0",
    }


def asked(port: int, path: str) -> tuple[int, str]:
    """(status, body) at a health door."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def refused(port: int, path: str, token: str) -> str:
    """The id of a request of the API that is refused."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 400, answer.read()
        return str(answer.headers["request-id"])
    finally:
        connection.close()


@asynccontextmanager
async def running(folder: Path, name: str, environment: dict[str, str]) -> AsyncIterator[int]:
    """A process with a health door; its port."""
    port = free_port()
    environment = {**environment, f"HOLDFAST_{name.upper()}_HEALTH_LISTEN": f"127.0.0.1:{port}"}
    supervisor = Supervisor(folder / "logs", lambda _: None)
    try:
        ready = listens_on("127.0.0.1", port)
        await supervisor.start([Program(name, installed(name), environment, ready)])
        yield port
    finally:
        await supervisor.stop()


async def _ask(port: int, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(asked, port, path)


def test_the_newest_migration_is_what_programs_need() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from app.database.schema import SCRIPTS

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [newest_revision()]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_api_tells_how_it_is_and_what_it_does(service: Service, folder: Path) -> None:
    tenant = await service.make_tenant()
    tenant_id = (await tenant.get("/v1/tenant")).json()["id"]
    port = free_port()
    environment = {**told(service.url, folder), "HOLDFAST_API_LISTEN": f"127.0.0.1:{port}"}
    del environment["HOLDFAST_KEYS_SOCKET"]
    async with running(folder, "api", environment) as door:
        async with asyncio.timeout(60):
            while not await listens_on("127.0.0.1", port)():
                await asyncio.sleep(0.05)
        assert await _ask(door, "/ready") == (200, '{"ready": true}')
        request_id = await asyncio.to_thread(
            refused, port, "/v1/sites?cursor=c4n4ry", tenant.token or ""
        )
        figures = (await _ask(door, "/metrics"))[1]
        assert 'holdfast_api_requests_total{method="GET",route="/v1/sites",status="400"} 1' in (
            figures
        )
    log = (folder / "logs/api.log").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    (line,) = [one for one in lines if one.get("request_id") == request_id]
    assert (line["event"], line["tenant"], line["route"]) == ("request", tenant_id, "/v1/sites")
    assert line["actor"].startswith("key_")
    assert line["status"] == 400
    assert (tenant.token or "").rsplit("_", 1)[1] not in log
    assert "c4n4ry" not in log


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["dsm", "keys"])
async def test_a_process_tells_how_it_is(service: Service, folder: Path, name: str) -> None:
    environment = told(service.url, folder)
    if name == "dsm":
        del environment["HOLDFAST_KEYS_SOCKET"], environment["HOLDFAST_BROKER_URL"]
    async with running(folder, name, environment) as door:
        assert await _ask(door, "/ready") == (200, '{"ready": true}')
        assert await _ask(door, "/health") == (200, '{"status": "up"}')
        assert f"holdfast_{name}_" in (await _ask(door, "/metrics"))[1]
        assert (await _ask(door, "/nothing"))[0] == 404


async def test_ready_follows_the_database_and_health_does_not(service: Service) -> None:
    store = {"name": "default", "territory": "CH", "url": "s3://b", "wall": "shared"}
    store |= {"access_key_id": "c4n4ry", "secret_access_key": "c4n4ry"}
    await service.provider.post("/v1/provider/journal-stores", store)
    assert (await service.nobody.get("/ready")).json() == {"ready": True}
    health = (await service.nobody.get("/health")).json()
    assert (health["status"], health["store_walls"]) == ("up", {"shared": 1})
    assert "one credential" in health["warnings"][0]
    assert "c4n4ry" not in str(health)
    await service.tools.database.close()
    with _shut(service.url):
        service.app.state.readiness._asked_at = float("-inf")
        away = await service.nobody.get("/ready")
        assert (away.status_code, away.json()["code"]) == (503, "database_unavailable")
        assert (await service.nobody.get("/health")).status_code == 200
    service.app.state.readiness._asked_at = float("-inf")
    assert (await service.nobody.get("/ready")).status_code == 200


class _shut:  # noqa: N801 - a context, used as a verb
    """Nobody of the service's roles may log in."""

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def _all(self, what: str) -> None:
        with self._engine.connect() as connection:
            for role in (APP, SYSTEM):
                connection.execute(text(f"ALTER ROLE {role} {what}"))

    def __enter__(self) -> None:
        self._all("NOLOGIN")

    def __exit__(self, *_: object) -> None:
        self._all("LOGIN")
        self._engine.dispose()


async def test_another_schema_is_refused_before_any_harm(service: Service, folder: Path) -> None:
    """A half-done upgrade, or a program beside a database of another version."""
    assert [is_behind(one) for one in (None, newest_revision(), "of a newer program")] == [
        True,
        False,
        False,
    ]
    await check_schema(service.tools.database)
    engine = create_engine(service.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '20261122_1900'"))
    engine.dispose()
    with pytest.raises(BadSettings, match="20261122_1900"):
        await check_schema(service.tools.database)
    service.app.state.readiness._asked_at = float("-inf")
    assert (await service.nobody.get("/ready")).status_code == 503
    environment = {**os.environ, **told(service.url, folder)}
    for name in ("api", "dsm", "worker"):
        done = await asyncio.to_thread(
            subprocess.run,
            [HOLDFAST, name], env=environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1, (name, done.stderr)
        assert "20261122_1900" in done.stderr
        assert "holdfast setup" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_database_that_nobody_migrated_is_named(cluster: Cluster) -> None:
    from app.database.sessions import Database

    async def check(url: URL) -> None:
        database = Database(url)
        try:
            await check_schema(database)
        finally:
            await database.close()

    with cluster.empty_database() as url, pytest.raises(BadSettings, match="is none"):
        asyncio.run(check(url))
