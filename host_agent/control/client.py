"""The commands' side of the agent's socket. Plain and quick to import."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from host_agent.control.errors import AgentNotRunning, BadConfig, CommandRefused

#: Looked for in this order where --config is not given.
CONFIG_VARIABLE = "HOLDFAST_AGENT_CONFIG"
CONFIG_PLACES = (Path("agent.toml"), Path("/etc/holdfast/agent.toml"))


def find_config(given: str | None) -> Path:
    """Which configuration file is meant; BadConfig."""
    named = given or os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    for place in CONFIG_PLACES:
        if place.exists():
            return place
    places = " nor ".join(str(place) for place in CONFIG_PLACES)
    raise BadConfig(
        f"There is neither {places}.",
        hint=f"Name the configuration with --config or in {CONFIG_VARIABLE}.",
    )


def socket_of(config: Path) -> Path:
    """Where the agent of that configuration listens; BadConfig. Checks no more than it needs."""
    try:
        content = tomllib.loads(config.read_text())
        text = content.get("socket") or f"{content['state_dir']}/agent.sock"
        return (config.absolute().parent / str(text)).absolute()
    except OSError as error:
        raise BadConfig(f"{config} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{config} is not TOML: {error}.") from None
    except KeyError:
        raise BadConfig(f"{config}: state_dir is missing.", hint="Add state_dir.") from None


def socket_of_identity(directory: Path) -> Path:
    """Where the agent of an enrolled host's folder listens."""
    return directory.absolute() / "state" / "agent.sock"


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Within: a name of this socket that fits into an address (107 bytes) however deep its folder
    lies, as a placed tenant's does; OSError where there is no such folder.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, request: dict[str, Any], seconds: float = 120.0) -> dict[str, Any]:
    """One command and its answer; AgentNotRunning or CommandRefused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            with short_address(path) as address:
                sock.connect(address)
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = _read_line(sock)
        except OSError as error:
            reason = "did not answer in time" if isinstance(error, TimeoutError) else "is not there"
            raise AgentNotRunning(
                f"The agent at {path} {reason}.",
                hint="Start it: holdfast-agent run, with the same --config or --identity.",
                retryable=True,
            ) from None
    if answer.pop("ok", False) is not True:
        raise CommandRefused(answer)
    return answer


def _read_line(sock: socket.socket) -> dict[str, Any]:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            raise ConnectionResetError
        data += part
    answer = json.loads(data)
    return answer if isinstance(answer, dict) else {}
