"""Folding a day: time and memory, and what ingest notices. `python -m tests.bench.fold [MILLIONS]`.

A journal of 4 KiB writes over a disk of 64 GiB, half of them in a sixteenth of it (as `pitmap`
builds it; their data is zeroes, which compress to nothing), lies in a folder on a real file system.
`holdfast journal fold` moves all of it but its end into layers, as a process with `nice`. Memory is
watched from outside: **resident** counts pages of temporary files that the kernel may drop,
**anonymous** does not. Meanwhile a tap, an agent and an ingest store what fio writes; their rate is
compared, in alternation, with the rate while nothing is folded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tests.bench.cases import Case, run
from tests.bench.pipeline import DISK_BYTES, LOAD, run_ours
from tests.bench.pitmap import MILLION, journal_of
from tests.bench.processes import BenchFailed
from tests.bench.site import run_site
from tests.bench.workspace import REAL, make_disk, workspace

BENCH = "fold"
MEMORY_MIB_MAX = 1024.0
RATE_MIN = 0.9
_ROUNDS = 5
_NICE = "19"
_LOOK_SECONDS = 0.05
_SECONDS_MAX = 3600.0


@dataclass
class Usage:
    """What a process used at most, MiB, and how long it ran, seconds."""

    resident: float = 0.0
    anonymous: float = 0.0
    seconds: float = 0.0


def make_journal(folder: Path, millions: float) -> None:
    """The journal of so many million writes below the folder, and its tenant's key."""
    builder = journal_of(int(millions * MILLION))
    # What stays behind the fold: the newest place is never folded.
    builder.claim()
    objects: dict[str, bytes] = builder.store.objects  # type: ignore[attr-defined]
    for name, data in objects.items():
        path = folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    key = folder / "tenant.key"
    key.touch(0o600)
    key.write_bytes(builder.tenant_key.dump())


def forget_fold(folder: Path) -> None:
    """Take away what a fold made, so that it can be made again."""
    for name in ("layers", "parts", "boundary"):
        for path in sorted((folder / "store").glob(f"*/*/*/{name}/**/*"), reverse=True):
            if path.is_file():
                path.unlink()


def _begin(folder: Path) -> subprocess.Popen[bytes]:
    words = ["journal", "fold", "--store", f"file://{folder / 'store'}", "--tenant", "acme"]
    words += ["--key-file", str(folder / "tenant.key"), "--window", "720", "--size-limit", "1"]
    command = ["nice", "-n", _NICE, sys.executable, "-m", "workers.cli.main", *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _look(pid: int, usage: Usage) -> None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            usage.resident = max(usage.resident, int(value.split()[0]) / 1024)
        elif name == "RssAnon":
            usage.anonymous = max(usage.anonymous, int(value.split()[0]) / 1024)


@contextmanager
def folding(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Usage]]:
    """A fold that runs while the block does; it is ended with it."""
    child, usage, began = _begin(folder), Usage(), time.monotonic()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            _look(child.pid, usage)
            if child.poll() is None:
                usage.seconds = time.monotonic() - began

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield child, usage
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()
        over.set()
        watcher.join()


def fold_alone(folder: Path) -> tuple[Usage, int]:
    """One fold from beginning to end, and how many places it folded."""
    with folding(folder) as (child, usage):
        out, _ = child.communicate(timeout=_SECONDS_MAX)
    if child.returncode:
        raise BenchFailed(f"The fold ended with {child.returncode}: {out[-2000:].decode()}")
    return usage, int(json.loads(out)["streams"][0]["folded_places"])


def rates(directory: Path, folder: Path) -> tuple[float, float]:
    """Writes stored a second: (while a fold runs, without one), medians of alternating rounds."""
    load = replace(LOAD, seconds=3.0)
    beside: list[float] = []
    alone: list[float] = []
    with run_site(directory) as site:
        uri = site.attach(make_disk(directory / "disk.img", DISK_BYTES))
        run_ours(site, uri, load)
        for _ in range(_ROUNDS):
            alone.append(run_ours(site, uri, load).stored)
            forget_fold(folder)
            with folding(folder) as (child, _):
                time.sleep(1.0)
                found = run_ours(site, uri, load).stored
                if child.poll() is None:
                    beside.append(found)
        if len(beside) < 2:
            raise BenchFailed("The fold was over before ingest's rate could be measured.")
    return median(beside), median(alone)


def cases(millions: float = 10) -> Iterator[Case]:
    """Every case of this benchmark."""
    name = f"{millions:g}m"
    with workspace(REAL) as folder:
        make_journal(folder, millions)
        usage, places = fold_alone(folder)
        note = f"{places} places, {millions * MILLION / usage.seconds:,.0f} writes/s"
        yield Case(BENCH, f"{name}_seconds", "s", usage.seconds, "none", 0, better="lower",
                   note=note)  # fmt: skip
        for kind, value in (("resident", usage.resident), ("anonymous", usage.anonymous)):
            yield Case(BENCH, f"{name}_memory_{kind}", "MiB", value, "limit", MEMORY_MIB_MAX, 1.0,
                       better="lower")  # fmt: skip
        with workspace() as directory:
            beside, alone = rates(directory, folder)
            yield Case(BENCH, "ingest_rate_beside_fold", "writes/s", beside, "without a fold",
                       alone, RATE_MIN, note=f"fold at nice {_NICE}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(cases(*map(float, sys.argv[1:2]))))
