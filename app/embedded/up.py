"""The whole service on one machine, in one folder: `holdfast up`.

This process stays small: it starts the others and starts them again. What needs the database's and
the certificates' libraries is done by one that ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.embedded.folder import Folder, open_folder, write_private
from app.embedded.nursery import Nursery
from app.embedded.postgres import Postgres
from app.embedded.processes import Doors, Installation, address, programs_of
from app.embedded.supervisor import Supervisor
from host_agent.wire.errors import HoldfastError

_SERVER_NAMES = ("localhost", "127.0.0.1", "::1")


class AddressTaken(HoldfastError):
    """The API's port is in use."""

    code = "address_taken"


class PreparationFailed(HoldfastError):
    """The service cannot be started in this folder. The code is that of what is wrong there."""

    code = "preparation_failed"


@dataclass(frozen=True)
class UpOptions:
    """Where the state lies, where the three doors listen, which further names the API has, and in
    which territory all of it is.
    """

    directory: Path
    host: str = "127.0.0.1"
    port: int = 7443
    control_port: int = 7444
    data_port: int = 7445
    names: tuple[str, ...] = ()
    territory: str = "CH"

    @property
    def reached_as(self) -> str:
        """The name by which hosts reach the doors: the first that was given, else the address."""
        return self.names[0] if self.names else self.host


@dataclass(frozen=True)
class Started:
    """What whoever started it wants to know."""

    url: str
    root_sha256: str
    root_file: Path
    provider_token: str | None


def run_up(options: UpOptions, on_started: Callable[[Started], None]) -> int:
    """Run until a signal; `on_started` is called when the API answers. Returns the exit code."""
    with open_folder(options.directory) as folder:
        _check_free(options)
        asyncio.run(_run(folder, options, on_started))
    return 0


async def _run(folder: Folder, options: UpOptions, on_started: Callable[[Started], None]) -> None:
    """Start every process, wait for a signal, end them; a second signal ends them at once."""
    supervisor, nursery = Supervisor(folder.path / "logs", _say_trouble), Nursery(folder.path)
    stop = _stopped_by_signals(supervisor)
    starting = asyncio.create_task(_start(folder, options, supervisor, nursery))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_started(starting.result())
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await supervisor.stop()
        await nursery.stop()


def _stopped_by_signals(supervisor: Supervisor) -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


async def _start(
    folder: Folder, options: UpOptions, supervisor: Supervisor, nursery: Nursery
) -> Started:
    """The database, what it needs, then everything else; HoldfastError."""
    await nursery.begin()
    is_ready = asyncio.Event()
    preparing = asyncio.create_task(_prepare(folder, options, is_ready))
    try:
        database = await asyncio.to_thread(Postgres(folder.postgres).program)
        await supervisor.start([database])
        is_ready.set()
        made = await preparing
    finally:
        preparing.cancel()
    token = made["provider_token"]
    if token is not None and not os.isatty(sys.stdout.fileno()):
        folder.provider_key.unlink(missing_ok=True)
        write_private(folder.provider_key, f"{token}\n".encode())
    installation = Installation(
        folder,
        made["database_url"],
        Doors(
            options.host, options.reached_as, options.port, options.control_port, options.data_port
        ),
        nursery.launch,
    )
    for programs in programs_of(installation):
        await supervisor.start(programs)
    return Started(_url(options), made["root_sha256"], folder.root_file, token)


async def _prepare(folder: Folder, options: UpOptions, is_ready: asyncio.Event) -> dict[str, Any]:
    """Done once the database is ready; its process is started at once, for its imports take longer
    than the database's start.
    """
    door = address(options.reached_as, options.data_port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.embedded.prepare", str(folder.path),
        "--data-door", door, "--territory", options.territory,
        "--names", *_SERVER_NAMES, *options.names,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await is_ready.wait()
        said, complaint = await process.communicate(b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        made: dict[str, Any] = json.loads(said)
    except ValueError:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise PreparationFailed(f"The folder cannot be prepared: {' '.join(last)}") from None
    if "error" in made:
        error = PreparationFailed(made["message"], hint=made["hint"])
        error.code = made["error"]
        raise error
    return made


def _say_trouble(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _check_free(options: UpOptions) -> None:
    """Before anything is started: AddressTaken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    ports = {
        "--port": options.port,
        "--control-port": options.control_port,
        "--data-port": options.data_port,
    }
    for option, port in ports.items():
        try:
            socket.create_server((options.host, port), family=family).close()
        except OSError as error:
            raise AddressTaken(
                f"Nothing can listen on {options.host}, port {port}: {error.strerror}.",
                hint=f"Name another port with {option}, or another address with --host.",
            ) from None


def _url(options: UpOptions) -> str:
    return f"https://{address(options.host, options.port)}"
