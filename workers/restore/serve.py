"""A moment of a stream served over NBD at once, by a tap of its own."""

from __future__ import annotations

import shutil
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
from workers.restore.errors import TapFailed, TargetExists, target_error
from workers.restore.livemap import LiveMap
from workers.restore.progress import Progress, Silent
from workers.restore.provider import Provider
from workers.restore.tap_process import TapProcess

_BLOCK_BYTES = 512
_POLL_SECONDS = 0.2
_GROUP = "recovered"


@dataclass(frozen=True)
class ServeOptions:
    """`socket_dir` gets sockets and scratch files; `fill` fetches what nobody asked for, too."""

    socket_dir: Path
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
def serve(journal: Journal, point: Point, options: ServeOptions) -> Iterator[Served]:
    """Serve every disk of the point while the context lasts.

    Guests' writes go to sparse scratch files in the socket directory, which are gone afterwards;
    the journal is never written to. TapMissing, TapFailed, TargetExists, TargetFailed, UnknownBase.
    """
    scratch = options.socket_dir / "scratch"
    with ExitStack() as stack:
        ended = stack.enter_context(_signals())
        options.progress.start("map", None, "records")
        # Beside the tap's start, which stays in this thread: the tap ends when its thread does.
        maker = stack.enter_context(ThreadPoolExecutor(1, "holdfast-map"))
        coming = maker.submit(LiveMap, journal, point, options.cache)
        stack.callback(_close, coming)
        _claim_folder(options.socket_dir, scratch)
        failpoint("serve_after_folder_before_tap")
        stack.callback(_clear, options.socket_dir)
        tap = stack.enter_context(TapProcess(options.socket_dir))
        assert tap.control is not None
        disks, group_socket = [], ""
        for name, size in disks_of(journal, point):
            answer = tap.control.call(
                "recover",
                {
                    "group": _GROUP,
                    "disk": name,
                    "path": str((scratch / f"{name}.raw").absolute()),
                    "size": size,
                    "block_size": _BLOCK_BYTES,
                },
            )
            disks.append(_served_disk(name, size, answer))
            group_socket = str(answer["stream_socket"])
        if not disks:
            raise TapFailed("The stream has no disks at that moment.")
        failpoint("serve_after_disks_before_provider")
        provider = Provider(journal, coming.result(), Path(group_socket))
        stack.callback(provider.close)
        stream = f"{journal.identity.group}/{journal.identity.host}"
        served = Served(stream, point, disks, tap, provider)
        served.ended = ended
        if options.fill:
            provider.fill_behind()
        failpoint("serve_after_provider_before_told")
        yield served


def _close(coming: Future[LiveMap]) -> None:
    """Close a map that was made, or is being made."""
    if coming.exception() is None:
        coming.result().close()


def _served_disk(name: str, size: int, answer: dict[str, Any]) -> ServedDisk:
    return ServedDisk(name, size, str(answer["uri"]), str(answer["nbd_socket"]))


def _claim_folder(folder: Path, scratch: Path) -> None:
    """Make the folder ours; TargetExists if another restore serves from it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.mkdir(mode=0o700)
    except FileExistsError:
        raise TargetExists(
            f"{folder} is used by another restore, or one that did not end in order.",
            hint=f"Name another --socket-dir; or, if nothing serves from it, remove {folder}.",
        ) from None
    except OSError as error:
        raise target_error(folder, "used", error) from error


def _clear(folder: Path) -> None:
    """Remove what `serve` made. What guests wrote is gone with it."""
    for name in ("scratch", "run", "state"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "tap.log").unlink(missing_ok=True)


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
