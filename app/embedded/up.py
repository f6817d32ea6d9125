"""The whole service on one machine, in one folder: `holdfast up`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, create_engine, insert, select, text

from app.database.migrate import prepare_database, upgrade
from app.database.sessions import Database
from app.embedded.folder import Folder, open_folder, write_private
from app.embedded.postgres import DATABASE, Postgres
from app.embedded.processes import Installation, programs_of
from app.embedded.supervisor import Supervisor
from app.identity.tokens import make_token
from app.kit.clock import SystemClock
from app.kit.ids import new_uuid
from app.kit.sealing import Sealer
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
        _check_free(options)
        now = SystemClock().now()
        sealer, root = folder.sealer(), folder.root(now)
        server = Postgres(folder.postgres)
        stack.callback(server.stop)
        server.start()
        url = _ready_database(server)
        token = asyncio.run(_first_provider_key(url, sealer, folder))
        certificate = folder.server_files(root, (*_SERVER_NAMES, *options.names), now)
        installation = Installation(folder, url, certificate, options.host, options.port)
        started = Started(_url(options), root.fingerprint, folder.root_file, token)
        asyncio.run(_supervise(installation, lambda: on_started(started)))
    return 0


async def _supervise(installation: Installation, on_started: Callable[[], None]) -> None:
    """Start every process, wait for a signal, end them; a second signal ends them at once."""
    stop = asyncio.Event()
    supervisor = Supervisor(installation.folder.path / "logs", _say_trouble)

    def on_signal() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(supervisor.start(programs_of(installation)))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            on_started()
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await supervisor.stop()


def _say_trouble(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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


def _check_free(options: UpOptions) -> None:
    """Before anything is started: AddressTaken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        socket.create_server((options.host, options.port), family=family).close()
    except OSError as error:
        raise AddressTaken(
            f"The API cannot listen on {options.host}, port {options.port}: {error.strerror}.",
            hint="Name another port with --port, or another address with --host.",
        ) from None


def _url(options: UpOptions) -> str:
    host, port = options.host, options.port
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Until the processes run, a signal ends us through every clean-up; then the loop has it."""
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


async def _first_provider_key(url: URL, sealer: Sealer, folder: Folder) -> str | None:
    """The first key of the provider's staff, once: shown on a terminal, else in a file of 0600."""
    database = Database(url)
    try:
        async with database.provider() as session:
            if (await session.orm.execute(select(ProviderKey.id).limit(1))).first():
                return None
            now = SystemClock().now()
            token = make_token(None, new_uuid(now))
            if not (os.isatty(sys.stdout.fileno())):
                folder.provider_key.unlink(missing_ok=True)
                write_private(folder.provider_key, f"{token.text}\n".encode())
            row = {"id": token.id, "name": FIRST_KEY, "created_at": now}
            values = {**row, "fingerprint": token.fingerprint(sealer)}
            await session.orm.execute(insert(ProviderKey).values(**values))
            await session.commit()
        return token.text
    finally:
        await database.close()
