"""Which processes an installation on one machine has, and what each is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.embedded.folder import Folder
from app.embedded.supervisor import Program
from app.embedded.valkey import broker_url, valkey_program


@dataclass(frozen=True)
class Installation:
    """One folder, its database, the API's address."""

    folder: Folder
    database_url: str
    host: str
    port: int


def programs_of(installation: Installation) -> list[Program]:
    """In the order of their start; they end in the reverse order."""
    return [
        valkey_program(_valkey_home(installation)),
        _keys(installation),
        _worker(installation),
        _api(installation),
    ]


def _shared(installation: Installation) -> dict[str, str]:
    """What every process with a database is told."""
    folder = installation.folder
    return {
        "HOLDFAST_DATABASE_URL": installation.database_url,
        "HOLDFAST_SECRET_FILE": str(folder.secret),
        "HOLDFAST_ROOT_CERTIFICATE_FILE": str(folder.root_file),
    }


def _api(installation: Installation) -> Program:
    address = _address(installation.host, installation.port)
    told = {
        "HOLDFAST_API_LISTEN": address,
        "HOLDFAST_API_CERTIFICATE_FILE": str(installation.folder.server_file),
        "HOLDFAST_ROOT_KEY_FILE": str(installation.folder.root_key),
        "HOLDFAST_KEYS_SOCKET": str(installation.folder.keys_socket),
    }
    environment = _shared(installation) | told
    return _program("api", environment, listens_on(installation.host, installation.port))


def _keys(installation: Installation) -> Program:
    """It is told of no database and of no secret but its own."""
    folder = installation.folder
    told = {
        "HOLDFAST_KEYS_DIRECTORY": str(folder.path / "keys"),
        "HOLDFAST_KEYS_SOCKET": str(folder.keys_socket),
        "HOLDFAST_ROOT_CERTIFICATE_FILE": str(folder.root_file),
    }
    return _program("keys", told, listens_on_socket(folder.keys_socket))


def _worker(installation: Installation) -> Program:
    broker = broker_url(_valkey_home(installation))
    told = {
        "HOLDFAST_BROKER_URL": broker,
        "HOLDFAST_STORE_URL": installation.folder.store_url,
        "HOLDFAST_KEYS_SOCKET": str(installation.folder.keys_socket),
        "HOLDFAST_WORKER_PROCESSES": "1",
    }
    # What is due waits for a worker; nothing of the start waits for it.
    return _program("worker", _shared(installation) | told, _at_once)


def _valkey_home(installation: Installation) -> Path:
    return installation.folder.path / "valkey"


async def _at_once() -> bool:
    return True


def _program(
    verb: str, environment: Mapping[str, str], is_ready: Callable[[], Awaitable[bool]]
) -> Program:
    return Program(verb, installed(verb), environment, is_ready)


def installed(verb: str) -> list[str]:
    """The words that run a process of the service as it is installed here."""
    return [sys.executable, "-m", "workers.cli.main", verb]


def listens_on(host: str, port: int) -> Callable[[], Awaitable[bool]]:
    """Ready when something accepts connections there."""

    async def is_ready() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        writer.close()
        return True

    return is_ready


def listens_on_socket(path: Path) -> Callable[[], Awaitable[bool]]:
    """The same for a Unix socket."""

    async def is_ready() -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            return False
        writer.close()
        return True

    return is_ready


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
