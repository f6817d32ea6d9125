"""`holdfast datanode`: the process that a data node is, from its settings to its orderly end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.kit.health_door import HealthDoor
from host_agent.wire.errors import HoldfastError
from workers.ingest.answering import serve_json
from workers.ingest.log import Log
from workers.ingest.ports import SystemClock
from workers.supervisor.control import ControlClient
from workers.supervisor.identity import PEM as IDENTITY
from workers.supervisor.identity import JoiningFailed, NodeIdentity, join, load_identity
from workers.supervisor.node import Node
from workers.supervisor.processes import Processes
from workers.supervisor.record import RecordStore

STATUS_SOCKET = "status"
_PREFIX = "HOLDFAST_"
_BACKLOG = 1024
#: A router of the process before us lets go of the port once it notices.
_LISTEN_SECONDS_MAX = 10.0
_JOIN_SECONDS_MAX, _JOIN_AGAIN_SECONDS = 60.0, 0.2


class BadSettings(HoldfastError):
    """The process was started with settings that are missing or make no sense."""

    code = "bad_settings"


@dataclass(frozen=True)
class NodeSettings:
    """What a data node is told. `api_url` and `token_file`: how it joins if it has not yet."""

    directory: Path
    listen: tuple[str, int]
    control_doors: tuple[tuple[str, int], ...]
    api_url: str | None = None
    token_file: Path | None = None
    health_listen: tuple[str, int] | None = None


def read_settings(environment: Mapping[str, str]) -> NodeSettings:
    """From HOLDFAST_DATANODE_DIRECTORY, HOLDFAST_DATANODE_LISTEN, HOLDFAST_CONTROL_DOORS (with
    commas), for joining HOLDFAST_API_URL and HOLDFAST_DATANODE_TOKEN_FILE, and for health and
    figures HOLDFAST_DATANODE_HEALTH_LISTEN; BadSettings.
    """
    doors = _needed(environment, "CONTROL_DOORS").split(",")
    token_file = environment.get(f"{_PREFIX}DATANODE_TOKEN_FILE")
    health = environment.get(f"{_PREFIX}DATANODE_HEALTH_LISTEN")
    return NodeSettings(
        directory=Path(_needed(environment, "DATANODE_DIRECTORY")),
        listen=_address("DATANODE_LISTEN", _needed(environment, "DATANODE_LISTEN")),
        control_doors=tuple(_address("CONTROL_DOORS", door.strip()) for door in doors),
        api_url=environment.get(f"{_PREFIX}API_URL"),
        token_file=Path(token_file) if token_file else None,
        health_listen=_address("DATANODE_HEALTH_LISTEN", health) if health else None,
    )


def _needed(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(f"{_PREFIX}{name}", "")
    if not value:
        raise BadSettings(f"{_PREFIX}{name} is not set.", hint="Set it and start again.")
    return value


def _address(name: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise BadSettings(f"{_PREFIX}{name}: {text!r:.80} is not HOST:PORT.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def run_datanode(settings: NodeSettings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. BadSettings, NotJoined, JoiningFailed."""
    os.umask(0o077)
    settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(settings.directory):
        identity = _identity(settings)
        records = RecordStore.open(settings.directory)
        listener = _listen(settings.listen)
        with listener:
            asyncio.run(_serve(settings, identity, records, listener))
    return 0


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadSettings(
                f"Another data node runs in {directory}.", hint="Name another folder."
            ) from None
        yield


def _identity(settings: NodeSettings) -> NodeIdentity:
    joined = (settings.directory / IDENTITY).exists()
    if joined or settings.api_url is None or settings.token_file is None:
        return load_identity(settings.directory)
    try:
        token = settings.token_file.read_text()
    except OSError as error:
        raise BadSettings(
            f"{_PREFIX}DATANODE_TOKEN_FILE: {settings.token_file}: {error.strerror}."
        ) from None
    deadline = time.monotonic() + _JOIN_SECONDS_MAX
    while True:
        try:
            return join(settings.api_url, token, settings.directory)
        except JoiningFailed as error:
            # Where everything starts at once, the API may be a moment later than we are.
            if not error.retryable or time.monotonic() > deadline:
                raise
        time.sleep(_JOIN_AGAIN_SECONDS)


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    deadline = time.monotonic() + _LISTEN_SECONDS_MAX
    while True:
        try:
            return socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BadSettings(
                    f"{_PREFIX}DATANODE_LISTEN: {address[0]}:{address[1]} cannot be used: "
                    f"{error.strerror}."
                ) from None
        time.sleep(0.1)


async def _serve(
    settings: NodeSettings, identity: NodeIdentity, records: RecordStore, listener: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = Log(SystemClock().wall_ns)
    processes = Processes(log)
    processes.start()
    node = Node(records, processes, log)
    node.load()
    node.start(listener)
    control = ControlClient(settings.control_doors, identity, node, log)
    status = await serve_json(
        settings.directory / STATUS_SOCKET,
        lambda: {**node.status(), "control": control.as_dict()},
    )
    health = await _open_health(settings, node)
    connecting = asyncio.create_task(control.run())
    host, port = listener.getsockname()[:2]
    log.info("listening", address=f"{host}:{port}", pid=os.getpid(), tenants=len(node.versions()))
    await stop.wait()
    log.info("stopping")
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    if health is not None:
        await health.stop()
    await processes.stop()
    status.close()
    (settings.directory / STATUS_SOCKET).unlink(missing_ok=True)
    log.info("stopped")


async def _open_health(settings: NodeSettings, node: Node) -> HealthDoor | None:
    if settings.health_listen is None:
        return None
    # Only who is asked for figures needs their library.
    from workers.supervisor.figures import figures_of

    door = HealthDoor(node.is_ready, figures_of(node.status))
    await door.start(*settings.health_listen)
    return door
