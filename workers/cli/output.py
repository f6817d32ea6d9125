"""What a command says: tables and progress for people, one JSON object for programs, errors for
both."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, BinaryIO, cast

from host_agent.wire.errors import HoldfastError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
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
        self._bars.start()
        in_bytes = unit == "bytes"
        self._task = self._bars.add_task(
            _PHASES[phase], total=total if in_bytes else None, in_bytes=in_bytes
        )

    def end(self) -> None:
        """The bars stay as they are, and nothing is drawn any more until the next phase."""
        self.finish()
        self._bars.stop()
        self._task = None
        for task in list(self._bars.task_ids):
            self._bars.remove_task(task)

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


class _Results(io.BufferedIOBase):
    """Standard output. Bars would be drawn over what is written there, so they are ended first."""

    def __init__(self, to: BinaryIO, end_bars: Callable[[], None]) -> None:
        self._to = to
        self._end_bars = end_bars

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._to.isatty()

    def write(self, data: ReadableBuffer) -> int:
        self._end_bars()
        return self._to.write(data)

    def flush(self) -> None:
        self._to.flush()


@contextmanager
def shown_progress() -> Iterator[PlainProgress | BarProgress]:
    """Bars where standard error is a terminal, lines where it is not."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    with _bars() as bars:
        shown = BarProgress(bars)
        results = cast("BinaryIO", _Results(sys.stdout.buffer, shown.end))
        with redirect_stdout(io.TextIOWrapper(results, sys.stdout.encoding, write_through=True)):
            yield shown
        shown.finish()


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Bytes(DownloadColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.fields["in_bytes"] else Text()

    class Speed(TransferSpeedColumn):
        def render(self, task: Task) -> Text:
            return super().render(task) if task.fields["in_bytes"] and task.speed else Text()

    columns = (TextColumn("{task.description}"), BarColumn(), Bytes(binary_units=True), Speed())
    return Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), redirect_stdout=False
    )
