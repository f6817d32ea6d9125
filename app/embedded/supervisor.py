"""Processes that are started together, started again when they die, and ended in order.

Decides nothing about what runs: see `processes`. Each child ends with its parent, also where the
parent is killed, and writes to a log of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Protocol

from host_agent.wire.errors import HoldfastError

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 30.0
#: A child that ran as long as this had a good start: the next wait is short again.
GOOD_SECONDS = 10.0
#: So many deaths in that time are told to people.
DEATHS_TOLD, DEATHS_WITHIN_SECONDS = 5, 600.0
_STOP_SECONDS_MAX = 20.0
_READY_SECONDS_MAX = 60.0
_LOG_BYTES_MAX = 16 * 1024 * 1024


class ProcessFailed(HoldfastError):
    """A process did not become ready."""

    code = "process_failed"


class Running(Protocol):
    """A process, as asyncio's are."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """How it ended; None: it has not."""

    async def wait(self) -> int:
        """How it ended, once it has."""

    def send_signal(self, number: int, /) -> None:
        """ProcessLookupError if it is gone."""

    def kill(self) -> None:
        """As `send_signal`."""


Launch = Callable[["Program", BufferedWriter], Awaitable[Running]]


def ending_with_parent(words: Sequence[str]) -> list[str]:
    """The words of a process that is told to end when the one that starts it has gone."""
    return ["setpriv", "--pdeathsig", "TERM", "--", *words]


async def execute(program: Program, log: BufferedWriter) -> Running:
    """Start a program by its words."""
    return await asyncio.create_subprocess_exec(
        *ending_with_parent(program.words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **program.environment},
        # A Ctrl-C is for the supervisor, which ends them in order.
        process_group=0,
    )


@dataclass(frozen=True)
class Program:
    """A process to run: its words, its environment beside ours, how to tell it is ready, and how it
    is started.
    """

    name: str
    words: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    launch: Launch = execute


def backoff(before: float, ran_seconds: float) -> float:
    """How long to wait after a death, seconds: doubled, short again after a good run."""
    if ran_seconds >= GOOD_SECONDS:
        return BACKOFF_SECONDS_MIN
    return min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS_MIN, before * 2))


@dataclass
class Child:
    """A program and the process that runs it now."""

    program: Program
    log: Path
    process: Running | None = None
    restarts: int = 0
    last_exit: int | None = None
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS_TOLD))

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if running and self.process else None

    def dies_often(self, now: float) -> bool:
        """Whether people should hear of it."""
        full = len(self.deaths) == DEATHS_TOLD
        return full and now - self.deaths[0] < DEATHS_WITHIN_SECONDS


class Supervisor:
    """Runs programs in order; `stop` ends them in the reverse order."""

    def __init__(self, logs: Path, on_trouble: Callable[[str], None]) -> None:
        self._logs = logs
        self._on_trouble = on_trouble
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def children(self) -> Sequence[Child]:
        """In the order of their start."""
        return tuple(self._children)

    async def start(self, programs: Sequence[Program]) -> None:
        """Start them at once and wait until all are ready; ProcessFailed."""
        self._logs.mkdir(mode=0o700, exist_ok=True)
        started = [await self._start_one(program) for program in programs]
        await asyncio.gather(*(self._wait_ready(child) for child in started))

    async def _start_one(self, program: Program) -> Child:
        child = Child(program, self._logs / f"{program.name}.log")
        await _launch(child)
        self._children.append(child)
        self._keepers.append(asyncio.create_task(self._keep(child), name=program.name))
        return child

    async def _wait_ready(self, child: Child) -> None:
        deadline = time.monotonic() + _READY_SECONDS_MAX
        while not await child.program.is_ready():
            if child.restarts or time.monotonic() > deadline:
                raise ProcessFailed(
                    f"{child.program.name} did not start: {_end_of(child.log)}",
                    hint=f"Its log is {child.log}.",
                )
            await asyncio.sleep(0.03)

    async def _keep(self, child: Child) -> None:
        wait = 0.0
        while True:
            assert child.process is not None
            began = time.monotonic()
            child.last_exit = await child.process.wait()
            if self._stopping:
                return
            now = time.monotonic()
            child.deaths.append(now)
            wait = backoff(wait, now - began)
            self._tell(child, wait, now)
            child.restarts += 1
            await asyncio.sleep(wait)
            # One that could not be started has ended as it did before: told, and tried once more.
            with contextlib.suppress(ProcessFailed):
                await _launch(child)

    def _tell(self, child: Child, wait: float, now: float) -> None:
        often = f", {DEATHS_TOLD} times in 10 minutes" if child.dies_often(now) else ""
        self._on_trouble(
            f"{child.program.name} ended with {child.last_exit}{often}; "
            f"it is started again in {wait:.1f} s. Its log is {child.log}."
        )

    async def stop(self) -> None:
        """End all, the last started first."""
        self._stopping = True
        for child in reversed(self._children):
            await _end(child)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill(self) -> None:
        """End all at once; for a second signal."""
        self._stopping = True
        for child in self._children:
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)


async def _launch(child: Child) -> None:
    if child.log.exists() and child.log.stat().st_size > _LOG_BYTES_MAX:
        child.log.replace(child.log.with_suffix(".log.1"))
    with child.log.open("ab") as log:
        child.process = await child.program.launch(child.program, log)


async def _end(child: Child) -> None:
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(child.program.stop_signal)
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS_MAX)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " | ".join(lines[-5:]) or "it wrote no log"
