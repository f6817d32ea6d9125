"""What a sync costs that compares: bytes on the line, and the speed of reading the disk.

`.venv/bin/python -m tests.bench.resync [GIB FILLED_GIB]`. A sparse disk, some of it filled, is
protected; then a hundredth of its size is changed behind the tap's back in pieces of 64 KiB, and a
sync is asked for. The peer of the bytes is what was changed; of the speed, BLAKE3 over the same
file's data in the same kind of process, which jumps over holes as well.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.cases import Case, run
from tests.bench.processes import BenchFailed
from tests.bench.site import GROUP, TENANT, Site, run_site
from tests.bench.workspace import workspace

_GIB = 1 << 30
_PIECE = 64 << 10
_CHUNK = 8 << 20
_WIRE_MAX, _SCAN_MIN = 1.2, 0.7
_SECONDS_MAX = 300.0
_TURNS = 5

#: Run in a process of its own, with the settings of the agent's.
_PLAIN_HASH = """
import mmap, os, sys, time
from blake3 import blake3
fd, size = os.open(sys.argv[1], os.O_RDONLY), os.stat(sys.argv[1]).st_size
buffer = mmap.mmap(-1, 8 << 20)
view, hasher, at, done, began = memoryview(buffer), blake3(), 0, 0, time.perf_counter()
while at < size:
    try:
        at = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        break
    got = os.preadv(fd, [view[:min(8 << 20, os.lseek(fd, at, os.SEEK_HOLE) - at)]], at)
    hasher.update(view[:got])
    at, done = at + got, done + got
print(done / (time.perf_counter() - began))
"""


@dataclass(frozen=True)
class Shape:
    """Bytes: the disk, what is filled of it, what is changed."""

    size: int = 10 * _GIB
    filled: int = _GIB

    @property
    def changed(self) -> int:
        """A hundredth of the disk, in whole pieces."""
        return self.size // 100 // _PIECE * _PIECE


def _make_disk(path: Path, shape: Shape) -> None:
    """Filled in runs of 8 MiB all over the disk."""
    rng = random.Random(1)
    with path.open("wb") as file:
        file.truncate(shape.size)
        for chunk in rng.sample(range(shape.size // _CHUNK), shape.filled // _CHUNK):
            file.seek(chunk * _CHUNK)
            file.write(rng.randbytes(_CHUNK))


def _change(path: Path, shape: Shape) -> None:
    """Pieces anywhere in what is filled, past the tap."""
    rng = random.Random(2)
    filled = random.Random(1).sample(range(shape.size // _CHUNK), shape.filled // _CHUNK)
    each = _CHUNK // _PIECE
    with path.open("r+b") as file:
        for piece in rng.sample(range(len(filled) * each), shape.changed // _PIECE):
            chunk, within = divmod(piece, each)
            file.seek(filled[chunk] * _CHUNK + within * _PIECE)
            file.write(rng.randbytes(_PIECE))


def _command(words: list[str]) -> dict[str, Any]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS_MAX, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{words[0]} failed: {done.stdout}{done.stderr}")
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def _agent(site: Site, *words: str) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("holdfast-agent"))
    return _command([program, *words, "--json", "--config", str(site.directory / "agent.toml")])


def _make_hashes(site: Site) -> None:
    program = str(Path(sys.executable).with_name("holdfast"))
    words = ["journal", "hashes", "--store", f"file://{site.store_dir}", "--tenant", TENANT]
    _command([program, *words, "--key-file", str(site.directory / "tenant.key"), "--json"])


def _group(site: Site) -> dict[str, Any]:
    (group,) = _agent(site, "status")["groups"]
    return dict(group)


def _received(group: dict[str, Any]) -> int:
    counters = group["counters"]
    return int(counters["wire_bytes_sent"]) + int(counters["readback_bytes"])


def _plain_speed(path: Path) -> float:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN_HASH, str(path)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return float(done.stdout)


@dataclass(frozen=True)
class _Synced:
    """One sync: seconds, bytes on the line in both directions, what the comparison says of it."""

    seconds: float
    line_bytes: int
    read_bytes: int
    read_seconds: float

    @property
    def speed(self) -> float:
        """MB of the disk a second."""
        return self.read_bytes / max(self.read_seconds, 1e-9) / 1e6


def _sync(site: Site) -> _Synced:
    before, began = _received(_group(site)), time.monotonic()
    _agent(site, "sync", GROUP)
    site.settle()
    seconds = time.monotonic() - began
    group = _group(site)
    compared = group["last_comparison"]
    if compared is None or compared["phase"] != "done":
        raise BenchFailed(f"Nothing was compared: {compared}")
    return _Synced(seconds, _received(group) - before, compared["read_bytes"], compared["seconds"])


def cases(shape: Shape | None = None) -> Iterator[Case]:
    """Bytes on the line over bytes changed; bytes read a second over plain hashing."""
    shape = shape or Shape()
    with workspace() as directory, run_site(directory) as site:
        disk = directory / "disk.raw"
        _make_disk(disk, shape)
        site.attach(disk)
        site.settle()
        _make_hashes(site)
        _change(disk, shape)
        sent = _sync(site)
        note = f"{shape.size >> 30} GiB, {shape.filled >> 30} GiB filled"
        wire, changed = sent.line_bytes / 1e6, shape.changed / 1e6
        yield Case("resync", "wire", "MB", wire, "changed", changed, _WIRE_MAX, "lower", note)
        _make_hashes(site)
        speeds, plain = [], []
        for _ in range(_TURNS):
            plain.append(_plain_speed(disk) / 1e6)
            speeds.append(_sync(site).speed)
        ours, peer = statistics.median(speeds), statistics.median(plain)
        same = f"{note}, nothing differs, median of {_TURNS}"
        yield Case("resync", "scan", "MB/s", ours, "blake3", peer, _SCAN_MIN, "higher", same)
        busy = f"{note}, while what differs is sent; {sent.seconds:.1f} s in all"
        yield Case("resync", "scan_sending", "MB/s", sent.speed, "blake3", peer, note=busy)


if __name__ == "__main__":
    sizes = [int(word) * _GIB for word in sys.argv[1:3]]
    sys.exit(run(cases(Shape(*sizes))))
