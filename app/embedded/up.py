"""The whole service on one machine, in one folder: `holdfast up`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from sqlalchemy import URL, create_engine, insert, select, text

from app.api import make_app
from app.database.migrate import prepare_database, upgrade
from app.database.sessions import Database
from app.embedded.folder import Folder, open_folder, write_private
from app.embedded.postgres import DATABASE, Postgres
from app.http.unit import Tools
from app.identity.tokens import make_token
from app.kit.clock import SystemClock
from app.kit.ids import new_uuid
from app.models import ProviderKey
from host_agent.wire.errors import HoldfastError

FIRST_KEY = "first provider"
_SERVER_NAMES = ("localhost", "127.0.0.1", "::1")


class AddressTaken(HoldfastError):
    """The API's port is in use."""

    code = "address_taken"


@dataclass(frozen=True)
class UpOptions:
    """Where the state lies, where the API listens, which further names it has."""

    directory: Path
    host: str = "127.0.0.1"
    port: int = 7443
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Started:
    """What whoever started it wants to know."""

    url: str
    root_sha256: str
    root_file: Path
    provider_token: str | None


def run_up(options: UpOptions, on_started: Callable[[Started], None]) -> int:
    """Run until a signal; `on_started` is called when the API answers. Returns the exit code."""
    with ExitStack() as stack:
        stack.enter_context(_stopped_by_signals())
        folder = stack.enter_context(open_folder(options.directory))
        listener = stack.enter_context(_listen(options))
        clock = SystemClock()
        sealer, root = folder.sealer(), folder.root(clock.now())
        server = Postgres(folder.postgres)
        stack.callback(server.stop)
        server.start()
        url = _ready_database(server)
        tools = Tools(Database(url), sealer, clock, root)
        names = (*_SERVER_NAMES, *options.names)
        certificate = folder.server_files(root, names, clock.now())
        asyncio.run(_serve(listener, tools, folder, certificate, on_started))
    return 0


def _ready_database(server: Postgres) -> URL:
    engine = create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        wanted = {"name": DATABASE}
        found = connection.execute(
            text("SELECT 1 FROM pg_database WHERE datname = :name"), wanted
        ).first()
        if found is None:
            connection.execute(text(f"CREATE DATABASE {DATABASE}"))
    engine.dispose()
    url = server.url()
    prepare_database(url)
    upgrade(url)
    return url


def _listen(options: UpOptions) -> socket.socket:
    """Before anything is started: AddressTaken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise AddressTaken(
            f"The API cannot listen on {options.host}, port {options.port}: {error.strerror}.",
            hint="Name another port with --port, or another address with --host.",
        ) from None


async def _serve(
    listener: socket.socket,
    tools: Tools,
    folder: Folder,
    certificate: Path,
    on_started: Callable[[Started], None],
) -> None:
    config = uvicorn.Config(
        make_app(tools),
        ssl_certfile=str(certificate),
        ssl_keyfile=str(certificate),
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    server = _Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        ready = asyncio.create_task(server.is_ready.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        token = await _first_provider_key(tools, folder)
        on_started(Started(_url(listener), tools.root.fingerprint, folder.root_file, token))
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await tools.database.close()


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_ready.set()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Until the API serves, a signal ends us through every clean-up; then the API handles it, and
    what it raises again after its end changes nothing.
    """
    seen = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _first_provider_key(tools: Tools, folder: Folder) -> str | None:
    """The first key of the provider's staff, once: shown on a terminal, else in a file of 0600."""
    async with tools.database.provider() as session:
        if (await session.orm.execute(select(ProviderKey.id).limit(1))).first():
            return None
        now = tools.clock.now()
        token = make_token(None, new_uuid(now))
        if not (os.isatty(sys.stdout.fileno())):
            folder.provider_key.unlink(missing_ok=True)
            write_private(folder.provider_key, f"{token.text}\n".encode())
        row = {"id": token.id, "name": FIRST_KEY, "created_at": now}
        values = {**row, "fingerprint": token.fingerprint(tools.sealer)}
        await session.orm.execute(insert(ProviderKey).values(**values))
        await session.commit()
    return token.text
