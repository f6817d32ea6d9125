"""Holdfast's own processes, as a host runs them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.control import Control
from tests.bench.processes import START_SECONDS_MAX, BenchFailed, Process
from tests.bench.watch import Facts

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def tap_binary() -> Path:
    """The compiled tap; BenchFailed says how to make it."""
    binary = ROOT / "host_agent/tap/target/release/holdfast-tap"
    if not binary.exists():
        raise BenchFailed("The tap is not compiled: run `make tap`.")
    return binary


@dataclass(frozen=True)
class Attached:
    """A disk that the tap serves."""

    uri: str
    stream_socket: Path
    group: str


class Tap:
    """A running tap."""

    def __init__(self, process: Process, run_dir: Path) -> None:
        self.pid = process.pid
        self._control = Control(run_dir / "tap.sock")

    def attach(self, group: str, disk: Path, ring_bytes: int, cache: str = "auto") -> Attached:
        """Serve a raw file. A new stream is dirty until somebody reads it."""
        answer = self._control.call(
            "attach",
            group=group,
            disk=disk.stem,
            path=str(disk),
            cache=cache,
            ring_bytes=ring_bytes,
            hold_ms_max=200,
        )
        return Attached(answer["uri"], Path(answer["stream_socket"]), group)

    def status(self) -> dict[str, Any]:
        """Everything that the tap counts."""
        return self._control.call("status")

    def facts(self, group: str) -> Facts:
        """Where a stream is."""
        for found in self.status()["groups"]:
            if found["group"] == group:
                return Facts(int(found["head"]), int(found["freed"]), str(found["state"]))
        raise BenchFailed(f"The tap has no group {group}.")

    def engine(self) -> str:
        """How it drives disks: `io_uring` or `threads`."""
        return str(self._control.call("hello", version=1)["engine"])


@contextmanager
def run_tap(directory: Path) -> Iterator[Tap]:
    """A tap of one's own; rings and sockets lie in `directory`, which is on tmpfs."""
    run_dir, state_dir, ring_dir = (directory / name for name in ("run", "state", "rings"))
    for folder in (run_dir, state_dir, ring_dir):
        folder.mkdir(mode=0o700, exist_ok=True)
    command: list[str | Path] = [tap_binary(), "--run-dir", run_dir]
    command += ["--state-dir", state_dir, "--ring-dir", ring_dir]
    with Process("tap", command, directory) as process:
        process.wait_for(run_dir / "tap.sock")
        yield Tap(process, run_dir)


@contextmanager
def drained(directory: Path, attached: Attached) -> Iterator[None]:
    """The stream is recording inside the block; BenchFailed if it ever stopped to."""
    command = [sys.executable, "-m", "tests.bench.drain", str(attached.stream_socket)]
    name = f"drain-{attached.group}"
    with Process(name, command, directory) as process:
        _wait_for_line(process, "recording")
        yield
        process.check()
    last = process.log.read_text().splitlines()[-1]
    if json.loads(last)["left_recording"]:
        raise BenchFailed("The ring was full: what was measured is not interception.")


def _wait_for_line(process: Process, line: str) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while line not in process.log.read_text().splitlines():
        process.check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"{process.name} did not say {line!r} in time: {process.log_end()}")
        time.sleep(0.02)
