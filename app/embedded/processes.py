"""Which processes an installation on one machine has, and what each is told."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.embedded.folder import Folder
from app.embedded.supervisor import Launch, Program, execute
from app.embedded.valkey import broker_url, valkey_program


@dataclass(frozen=True)
class Doors:
    """Where the API, the managers and the data node listen, and as what hosts reach them."""

    host: str
    reached_as: str
    api: int
    control: int
    data: int


@dataclass(frozen=True)
class Installation:
    """One folder, its database, its doors, and how those that share much are started."""

    folder: Folder
    database_url: str
    doors: Doors
    launch: Launch = execute


def programs_of(installation: Installation) -> list[list[Program]]:
    """In the order of their start, those of a list at once; they end in the reverse order."""
    # What answers people comes first: it must not share the processors with what they do not see.
    first = [
        valkey_program(_valkey_home(installation)),
        _keys(installation),
        _api(installation),
    ]
    # At its first start the data node joins, by the API.
    return [first, [_dsm(installation), _data_node(installation), _worker(installation)]]


def _shared(installation: Installation) -> dict[str, str]:
    """What every process with a database is told."""
    folder = installation.folder
    return {
        "HOLDFAST_DATABASE_URL": installation.database_url,
        "HOLDFAST_SECRET_FILE": str(folder.secret),
        "HOLDFAST_ROOT_CERTIFICATE_FILE": str(folder.root_file),
    }


def _api(installation: Installation) -> Program:
    doors = installation.doors
    told = {
        "HOLDFAST_API_LISTEN": address(doors.host, doors.api),
        "HOLDFAST_API_CERTIFICATE_FILE": str(installation.folder.server_file),
        "HOLDFAST_API_URL": f"https://{address(doors.reached_as, doors.api)}",
        "HOLDFAST_ROOT_KEY_FILE": str(installation.folder.root_key),
        "HOLDFAST_KEYS_SOCKET": str(installation.folder.keys_socket),
        "HOLDFAST_CONTROL_DOORS": json.dumps([address(doors.reached_as, doors.control)]),
    }
    is_ready = listens_on(doors.host, doors.api)
    return _program("api", _shared(installation) | told, is_ready, installation.launch)


def _dsm(installation: Installation) -> Program:
    doors = installation.doors
    told = {
        "HOLDFAST_CONTROL_LISTEN": address(doors.host, doors.control),
        "HOLDFAST_DSM_CERTIFICATE_FILE": str(installation.folder.server_file),
        "HOLDFAST_KEYS_SOCKET": str(installation.folder.keys_socket),
        "HOLDFAST_BROKER_URL": broker_url(_valkey_home(installation)),
        # On one machine rows are cheap, and the RPO that is shown is as old as they are.
        "HOLDFAST_CHECKPOINT_RECORD_SECONDS": "5",
    }
    is_ready = listens_on(doors.host, doors.control)
    return _program("dsm", _shared(installation) | told, is_ready, installation.launch)


def _data_node(installation: Installation) -> Program:
    """It is told of no database: it joins by a token and lives by what the managers tell it."""
    doors, folder = installation.doors, installation.folder
    told = {
        "HOLDFAST_DATANODE_DIRECTORY": str(folder.data_node),
        "HOLDFAST_DATANODE_LISTEN": address(doors.host, doors.data),
        "HOLDFAST_CONTROL_DOORS": address(doors.reached_as, doors.control),
        "HOLDFAST_API_URL": f"https://{address(doors.reached_as, doors.api)}",
        "HOLDFAST_DATANODE_TOKEN_FILE": str(folder.data_node_token),
    }
    return _program("datanode", told, listens_on(doors.host, doors.data))


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
    return _program("worker", _shared(installation) | told, _at_once, installation.launch)


def _valkey_home(installation: Installation) -> Path:
    return installation.folder.path / "valkey"


async def _at_once() -> bool:
    return True


def _program(
    verb: str,
    environment: Mapping[str, str],
    is_ready: Callable[[], Awaitable[bool]],
    launch: Launch = execute,
) -> Program:
    return Program(verb, installed(verb), environment, is_ready, launch=launch)


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


def address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
