"""What a command says: tables and progress for people, one JSON object for programs, errors for
both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from host_agent.wire.errors import HoldfastError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_PHASES = {
    "read": "Reading the journal",
    "map": "Making the map",
    "write": "Writing",
    "verify": "Reading back",
    "check": "Checking",
    "fold": "Folding",
    "collect": "Collecting",
    "hash": "Hashing",
}


def print_json(fields: Mapping[str, object]) -> None:
    """One object on one line of standard output."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def print_error(error: HoldfastError, *, as_json: bool) -> None:
    """One sentence and what to do, on standard error; as an object on standard output if asked."""
    if as_json:
        print_json(error.as_dict())
    sys.stderr.write(f"holdfast: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")


def size_text(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class PlainProgress:
    """A line for each phase on standard error, for logs."""

    def start(self, phase: str, total: int | None, unit: str) -> None:
        """Say that it begins."""
        much = f" {size_text(total)}" if total is not None and unit == "bytes" else ""
        sys.stderr.write(f"{_PHASES[phase]}{much} …\n")

    def advance(self, amount: int) -> None:
        """Nothing between the lines."""

    def say(self, sentence: str) -> None:
        """A line."""
        sys.stderr.write(f"{sentence}\n")


class BarProgress:
    """Bars on a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, phase: str, total: int | None, unit: str) -> None:
        """A new bar; the last one is complete."""
        self.finish()
        self._task = self._bars.add_task(_PHASES[phase], total=total if unit == "bytes" else None)

    def finish(self) -> None:
        """The running phase is over."""
        if self._task is not None:
            task = self._bars.tasks[self._task]
            done = max(task.completed, task.total or 0, 1)
            self._bars.update(self._task, total=done, completed=done)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def say(self, sentence: str) -> None:
        """A line above the bars."""
        self._bars.console.print(sentence, markup=False, highlight=False)


@contextmanager
def shown_progress() -> Iterator[PlainProgress | BarProgress]:
    """Bars where standard error is a terminal, lines where it is not."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        shown = BarProgress(bars)
        yield shown
        shown.finish()
