"""A moment of a stream served over NBD at once, by a tap of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from host_agent.wire.failpoints import failpoint
from workers.journal.pitmap import disks_of
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.journal.selectors import format_time
from workers.restore.errors import TapFailed
from workers.restore.livemap import LiveMap
from workers.restore.progress import Progress, Silent
from workers.restore.provider import Provider
from workers.restore.tap_process import TapProcess, scratch_of

_BLOCK_BYTES = 512
_POLL_SECONDS = 0.2
_GROUP = "recovered"


@dataclass(frozen=True)
class ServeOptions:
    """`fill` fetches what nobody asked for, too; `cache` is a folder for saved maps."""

    fill: bool = True
    cache: Path | None = None
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class ServedDisk:
    """A disk that can be opened. `size` in bytes."""

    name: str
    size: int
    uri: str
    socket: str


class Served:
    """Disks being served, until `wait` returns."""

    def __init__(
        self,
        stream: str,
        point: Point,
        disks: list[ServedDisk],
        tap: TapProcess,
        provider: Provider,
    ) -> None:
        self.stream = stream
        self.point = point
        self.disks = disks
        self.provider = provider
        self._tap = tap
        self.ended = threading.Event()

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "stream": self.stream,
            "point": self.point.as_dict(),
            "time": format_time(self.point.time),
            "disks": [
                {"name": d.name, "size": d.size, "uri": d.uri, "socket": d.socket}
                for d in self.disks
            ],
        }

    def wait(self, tell: Callable[[str], None] | None = None) -> None:
        """Serve until SIGINT or SIGTERM; TapFailed if the tap ends by itself."""
        told_filled, told_problem = False, None
        while not self.ended.wait(_POLL_SECONDS):
            self._tap.check()
            problem = self.provider.problem
            if tell is not None and problem is not None and problem is not told_problem:
                told_problem = problem
                tell(f"holdfast: {problem}")
            if tell is not None and self.provider.filled.is_set() and not told_filled:
                told_filled = True
                tell("Everything is here: the bucket is no longer needed.")


@contextmanager
def serve(
    journal: Journal, point: Point, tap: TapProcess, options: ServeOptions
) -> Iterator[Served]:
    """Serve every disk of the point by that tap while the context lasts.

    Guests' writes go to sparse scratch files in its directory; the journal is never written to.
    TapFailed, TapRefused, UnknownBase.
    """
    with ExitStack() as stack:
        ended = stack.enter_context(_signals())
        options.progress.start("map", None, "records")
        maker = stack.enter_context(ThreadPoolExecutor(1, "holdfast-map"))
        coming = maker.submit(LiveMap, journal, point, options.cache)
        stack.callback(_close, coming)
        disks, group_socket = _recover(tap, disks_of(journal, point))
        failpoint("serve_after_disks_before_provider")
        provider = Provider(journal, coming.result(), group_socket)
        stack.callback(provider.close)
        stream = f"{journal.identity.group}/{journal.identity.host}"
        served = Served(stream, point, disks, tap, provider)
        served.ended = ended
        if options.fill:
            provider.fill_behind()
        failpoint("serve_after_provider_before_told")
        yield served


def _recover(tap: TapProcess, wanted: list[tuple[str, int]]) -> tuple[list[ServedDisk], Path]:
    """Disks of these names and sizes, empty still, and the socket of who fills them."""
    disks, group_socket = [], Path()
    for name, size in wanted:
        answer = tap.control().call(
            "recover",
            {
                "group": _GROUP,
                "disk": name,
                "path": str(scratch_of(tap.directory) / f"{name}.raw"),
                "size": size,
                "block_size": _BLOCK_BYTES,
                "scratch": True,
            },
        )
        disks.append(_served_disk(name, size, answer))
        group_socket = Path(str(answer["stream_socket"]))
    if not disks:
        raise TapFailed("The stream has no disks at that moment.")
    return disks, group_socket


def _close(coming: Future[LiveMap]) -> None:
    """Close a map that was made, or is being made."""
    if coming.exception() is None:
        coming.result().close()


def _served_disk(name: str, size: int, answer: dict[str, Any]) -> ServedDisk:
    return ServedDisk(name, size, str(answer["uri"]), str(answer["nbd_socket"]))


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event while the context lasts."""
    ended = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
