"""What the mark of a cold extent costs a write: 4 KiB at random places of a large sparse disk.

`.venv/bin/python -m tests.bench.cold [GIB]`. Two taps serve a sparse disk each on a real file
system. One relies on marks, so that the first write into each 4 MiB waits until its mark is
durable; the other was never told that its first image is stored, so it does not. Single writes,
one at a time, by turns on both. After each write without a mark 4 KiB of another file of that file
system are written and `fdatasync` is called: the peer, because a mark is to cost one such call and
no more.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cases import Case, run
from tests.bench.control import Control
from tests.bench.nbd_writer import NbdWriter
from tests.bench.ours import Tap, tap_binary
from tests.bench.processes import BenchFailed, Process
from tests.bench.workspace import REAL, workspace

_GIB = 1 << 30
_PAGE = 4096
_RING_BYTES = 64 << 20
_SYNC_BYTES = 1 << 30
_NO_HASH = bytes(32).hex()
_WRITES = 1500
_PROBE_PAGES = 16
_SETTLE_SECONDS_MAX = 60.0
_FLUSHES_MAX = 1.0


class _Probe:
    """`fdatasync` behind 4 KiB that were written over older ones."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.pwrite(self._descriptor, bytes(_PROBE_PAGES * _PAGE), 0)
        os.fsync(self._descriptor)
        self.us: list[float] = []

    def take(self) -> None:
        """Once more; microseconds."""
        page = len(self.us) % _PROBE_PAGES
        os.pwrite(self._descriptor, os.urandom(_PAGE), page * _PAGE)
        begin = time.perf_counter()
        os.fdatasync(self._descriptor)
        self.us.append((time.perf_counter() - begin) * 1e6)

    def settle(self) -> None:
        """Let the device write what it has."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


@dataclass
class _Side:
    """One tap with its disk. Times in microseconds."""

    tap: Tap
    writer: NbdWriter
    size: int
    cold_us: list[float] = field(default_factory=list)
    hot_us: list[float] = field(default_factory=list)

    def write(self, place: int, data: memoryview) -> float:
        """One write alone; microseconds."""
        begin = time.perf_counter()
        self.writer.write_one(place, data)
        return (time.perf_counter() - begin) * 1e6

    def waits(self) -> int:
        """Writes that waited for a mark."""
        return int(self.tap.status()["groups"][0]["disks"][0]["hot"]["waits"])


@contextmanager
def _side(rings: Path, folder: Path, size: int, *, has_marks: bool) -> Iterator[_Side]:
    """A tap whose stream is recording; its ring is in memory, the rest in `folder`."""
    folder.mkdir()
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    run_dir, ring_dir = rings / f"run-{folder.name}", rings / f"rings-{folder.name}"
    command: list[str | Path] = [tap_binary(), "--run-dir", run_dir, "--ring-dir", ring_dir]
    command += ["--state-dir", folder / "state"]
    with Process(f"tap-{folder.name}", command, folder) as process:
        process.wait_for(run_dir / "tap.sock")
        tap = Tap(process, run_dir)
        attached = tap.attach("bench", disk, _RING_BYTES)
        _prepare(tap, Control(attached.stream_socket), has_marks=has_marks)
        writer = NbdWriter(attached.uri)
        yield _Side(tap, writer, size)
        writer.close()


def _prepare(tap: Tap, stream: Control, *, has_marks: bool) -> None:
    """Read the disk once; then wait until marks are relied on, or see that they are not."""
    stream.call("open")
    answer = {"state": "dirty"}
    while answer["state"] != "recording":
        answer = stream.call("sync", bytes=_SYNC_BYTES)
        _give_back(stream, is_stored=has_marks)
    wanted = "marked" if has_marks else "whole"
    deadline = time.monotonic() + _SETTLE_SECONDS_MAX
    while tap.status()["groups"][0]["disks"][0]["hot"]["state"] != wanted:
        if time.monotonic() > deadline:
            raise BenchFailed(f"The tap's marks are not {wanted} in time.")
        _give_back(stream, is_stored=has_marks)
        time.sleep(0.1)


def _give_back(stream: Control, *, is_stored: bool) -> None:
    head = stream.call("state")["head"]
    fields = {"anchor": head - head % 4096, "anchor_hash": _NO_HASH}
    stream.call("free", seq=head, stored=head if is_stored else 0, **fields)


def _pair(marked: _Side, plain: _Side, probe: _Probe, rng: random.Random) -> None:
    """A page for each side, one after the other: a device's flushes change from second to second.

    Before either flush one page that was just written to a disk lies in the device's cache.
    """
    data = memoryview(rng.randbytes(_PAGE))
    one, other = (rng.randrange(plain.size // _PAGE) * _PAGE for _ in range(2))
    plain.cold_us.append(plain.write(one, data))
    probe.take()
    plain.write(other, data)
    marked.cold_us.append(marked.write(one, data))
    marked.hot_us.append(marked.write(one, data))
    plain.hot_us.append(plain.write(one, data))
    probe.settle()


def cases(size: int = 64 * _GIB) -> Iterator[Case]:
    """What a cold write takes longer, over one flush; and what a hot one takes, over none."""
    with ExitStack() as stack:
        folder = stack.enter_context(workspace(REAL))
        rings = stack.enter_context(workspace())
        marked = stack.enter_context(_side(rings, folder / "on", size, has_marks=True))
        plain = stack.enter_context(_side(rings, folder / "off", size, has_marks=False))
        probe, rng = _Probe(folder / "probe"), random.Random(1)
        stack.callback(probe.close)
        for _ in range(_WRITES):
            _pair(marked, plain, probe, rng)
        if marked.waits() < _WRITES // 2 or plain.waits():
            raise BenchFailed(f"{marked.waits()} and {plain.waits()} writes waited for marks.")
        cold, usual = statistics.median(marked.cold_us), statistics.median(plain.cold_us)
        flush = statistics.median(probe.us)
        note = f"{size >> 30} GiB; {cold:.0f} us with marks, {usual:.0f} us without"
        name = "fdatasync"
        yield Case("cold", "mark", "us", cold - usual, name, flush, _FLUSHES_MAX, "lower", note)
        hot, usual = statistics.median(marked.hot_us), statistics.median(plain.hot_us)
        yield Case("cold", "hot", "us", hot, "without", usual, note="the same pages again")


if __name__ == "__main__":
    sys.exit(run(cases(*[int(word) * _GIB for word in sys.argv[1:2]])))
