"""Real processes, each recorded when it starts, so that exactly these are stopped at the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.report import DemoFailed

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_STOP_SECONDS = 15.0
_PORT_MIN = 10_000
_KERNEL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_given: set[int] = set()


def program(name: str, hint: str = "Run 'make deps'.") -> str:
    """The absolute path of a program; DemoFailed where it is missing."""
    # A user's PATH leaves out sbin, where the file system tools lie.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
    found = shutil.which(name, path=path)
    if found is None:
        raise DemoFailed(f"The program {name} is missing.", hint)
    return found


def has_program(name: str) -> bool:
    """Whether a program is installed."""
    try:
        return bool(program(name))
    except DemoFailed:
        return False


def wait_until(what: str, seconds: float, is_so: Callable[[], bool]) -> None:
    """Ask every 20 ms until it is so; DemoFailed after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise DemoFailed(f"Waited {seconds:.0f} s in vain: {what}.")
        time.sleep(0.02)


def run(
    argv: Sequence[str | Path],
    *,
    seconds: float = 60,
    allowed: Sequence[int] = (0,),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; DemoFailed if it fails, with the last of what it said."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            start_new_session=True,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{words[0]} did not end within {seconds:.0f} s.") from None
    if done.returncode not in allowed:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise DemoFailed(f"'{' '.join(words)}' ended with {done.returncode}: {said}")
    return done


def tool(name: str) -> Path:
    """A program of this environment; DemoFailed where it is not installed."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise DemoFailed(f"{path} is missing.", "Run 'make venv tap'.")
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on and that this process was not given before.

    The kernel gives it to no outgoing connection: who stops listening there can begin again.
    """
    first_of_kernel = int(_KERNEL_PORTS.read_text().split()[0])
    while True:
        port = random.randrange(_PORT_MIN, first_of_kernel)
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port


def json_output(argv: Sequence[str | Path], seconds: float = 60) -> dict[str, Any]:
    """Run a command that prints one JSON object; DemoFailed."""
    done = run(argv, seconds=seconds)
    try:
        content = json.loads(done.stdout)
    except ValueError:
        raise DemoFailed(f"{argv[0]} printed no JSON: {done.stdout[:300]!r}") from None
    if not isinstance(content, dict):
        raise DemoFailed(f"{argv[0]} printed JSON that is no object.")
    return content


@dataclass
class Process:
    """One process that runs beside us, its output in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def require(self) -> None:
        """DemoFailed if it has ended."""
        if not self.is_running:
            raise DemoFailed(f"{self.name} ended with {self.popen.returncode}: {self.tail()}")

    def tail(self) -> str:
        """The last of what it said."""
        try:
            return self.log.read_text(errors="replace").strip()[-1500:]
        except OSError:
            return ""

    def stop(self, number: int = signal.SIGTERM, seconds: float = _STOP_SECONDS) -> None:
        """Ask it to end, then make it end. Never another process than this one."""
        if self.is_running:
            self.popen.send_signal(number)
        self.end(seconds)

    def end(self, seconds: float) -> None:
        """Wait for its own end, and make it end after `seconds`."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@dataclass
class Processes:
    """All that we started."""

    logs: Path
    started: list[Process] = field(default_factory=list)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
    ) -> Process:
        """Start a program that runs until it is stopped, or until we die.

        With `pipes` its standard input and output are ours; else both go to the log.
        """
        log = self.logs / f"{name}.{len(self.started)}.log"
        # A session of its own: Ctrl-C reaches us alone, and we end the others in order.
        # Where we are killed, the kernel ends them.
        guard = [program("setpriv"), "--pdeathsig", "TERM", "--"]
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [*guard, *(str(word) for word in argv)],
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **(env or {})},
                cwd=cwd,
            )
        process = Process(name, popen, log)
        self.started.append(process)
        return process

    def stop_all(self) -> None:
        """End what still runs, the youngest first."""
        for process in reversed(self.started):
            process.stop()

    def running(self) -> list[str]:
        """Names and numbers of what still runs."""
        return [f"{one.name} ({one.pid})" for one in self.started if one.is_running]


def processes_that_name(folder: Path) -> list[str]:
    """Every process of this machine with the folder in its words or its environment."""
    found = []
    wanted = str(folder).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            has = wanted in words or wanted in (entry / "environ").read_bytes()
        except OSError:
            continue  # ended while we looked, or another user's
        if has and words:
            found.append(f"{words.replace(bytes(1), b' ').decode(errors='replace')[:120]}")
    return found
