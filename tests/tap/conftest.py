"""Taps, disks and streams for tests. Nothing is skipped: a missing tap is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tap.daemon import MEMORY, Stream, Tap, build, folder_in
from tests.tap.follow import Follower
from tests.tap.opened import close_all

#: A real file system that knows direct I/O, unlike the tests' own folder on some machines.
DISKS = Path("/var") / "tmp"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile before the first test's clock runs."""
    if (
        any("tests/tap/" in item.nodeid for item in session.items)
        and not session.config.option.collectonly
    ):
        build()


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack
        close_all()


@pytest.fixture
def memory(cleanup: ExitStack) -> Path:
    """A folder in memory."""
    return cleanup.enter_context(folder_in(MEMORY))


@pytest.fixture
def storage(cleanup: ExitStack) -> Path:
    """A folder on a real file system."""
    return cleanup.enter_context(folder_in(DISKS))


StartTap = Callable[..., Tap]


@pytest.fixture
def start_tap(memory: Path, cleanup: ExitStack) -> StartTap:
    """Starts taps that end with the test; `folder` is shared by a tap and its successor."""

    def start(folder: str = "t", **options: object) -> Tap:
        path = memory / folder
        path.mkdir(exist_ok=True)
        made = Tap(path, **options)  # type: ignore[arg-type]
        cleanup.callback(made.end)
        return made.start()

    return start


@pytest.fixture
def tap(start_tap: StartTap) -> Tap:
    """A running tap with failpoints."""
    return start_tap()


MakeDisk = Callable[..., Path]


@pytest.fixture
def make_disk(memory: Path) -> MakeDisk:
    """Makes sparse raw files."""

    def make(size: int = 1 << 20, name: str = "disk.img", folder: Path | None = None) -> Path:
        path = (folder or memory) / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    return make


OpenStream = Callable[..., Follower]


@pytest.fixture
def follow(cleanup: ExitStack) -> OpenStream:
    """Opens a group's stream as an agent does."""

    def opened(path: Path, synced: bool = True) -> Follower:
        stream = Stream(path)
        cleanup.callback(stream.channel.close)
        follower = Follower(stream)
        if synced:
            follower.sync()
        return follower

    return opened
