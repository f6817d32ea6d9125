"""Servers as processes: started, waited for, accounted and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class BenchFailed(RuntimeError):
    """A figure could not be measured; the message says what is in the way."""


def program(name: str) -> str:
    """The path of an installed program; BenchFailed names what is missing."""
    found = shutil.which(name)
    if found is None:
        raise BenchFailed(f"{name} is not installed; `make deps` installs every peer.")
    return found


class Process:
    """A server that is ended with the block that started it. Its output goes to a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log_dir: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log_dir / f"{name}.log"
        self._command = [str(part) for part in command]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if self._child.poll() is not None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def wait_for(self, path: Path) -> None:
        """Until the file or socket is there; BenchFailed with the log's end if it never is."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not path.exists():
            self.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"{self.name} did not make {path} in time:\n{self.log_end()}")
            time.sleep(0.02)

    def check(self) -> None:
        """BenchFailed with the log's end if the process is gone."""
        code = self._child.poll()
        if code is not None:
            raise BenchFailed(f"{self.name} ended with {code}:\n{self.log_end()}")

    def log_end(self) -> str:
        """The last lines that it wrote."""
        return self.log.read_text(errors="replace")[-2000:]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of whole processes, their ended threads included; grain of 10 ms."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def cpu_seconds_fine(pids: Iterable[int]) -> float:
    """Time on a core of the threads that live now, in nanoseconds' grain: for idle processes."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def proportional_bytes(pid: int) -> int:
    """PSS: resident memory, each page divided by how many processes share it; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A process that has ended and was not reaped yet has none.
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def resident_beside(pid: int, folder: Path) -> int:
    """Resident memory without the pages of files below `folder`: a process without its rings.

    A page that another process made resident counts here as soon as this one has touched it.
    """
    total, is_beside = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Rss" and is_beside:
            total += int(value.split()[0]) * 1024
        elif "-" in name.split(" ")[0]:
            is_beside = str(folder) not in line
    return total
