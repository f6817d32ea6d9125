"""From a guest's write to *stored*, beside QEMU's own mirror. `python -m tests.bench.pipeline`.

Ours: tap, agent and ingest as three processes, mutual TLS on the loopback, zstd, AES-256-GCM, a
ring of 128 MiB (the default), the journal a `file://` store. The peer: qemu-storage-daemon with
`blockdev-mirror` (copy-mode write-blocking) to a second qemu-nbd over a Unix socket, which neither
compresses nor encrypts. Disks, mirror target and journal are on tmpfs, except for the delay, where
the journal is on a real file system, with its fsyncs. Load: fio, 4 KiB at random, depth 32, every
buffer new, either incompressible or half compressible.

**Sustained** is the free run, if the tap's status never named another state than *recording* in it;
else fixed rates are stepped down until one keeps the stream in *recording*. That load is then run
in alternation with the mirror's free run, and lowered again if any round of it leaves *recording*.
The figure is what was *stored* while the load was on, divided by the time: what only filled the
ring does not count. The free run is reported by itself too, with what the tap said of its state.
**Processor time** is user and system time of the processes named above,
without fio, in the same runs. **Delay** is measured as `watch` says: from the tap's record of a
write to the moment at which the agent gave it back because ingest had committed it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from tests.bench.cases import Case, run
from tests.bench.load import Load, Sample, run_fio
from tests.bench.ours import MIB
from tests.bench.peers import Mirror, qemu_mirror
from tests.bench.processes import BenchFailed, cpu_seconds
from tests.bench.site import Site, SiteOptions, run_site
from tests.bench.watch import Observed, Watch, delays
from tests.bench.workspace import REAL, make_disk, workspace

BENCH = "pipeline"
DISK_BYTES = 256 * MIB
ROUNDS = 5
PEER = "QEMU write-blocking mirror"
GOAL_RATE = 4.0
GOAL_CPU = 0.25
_STEP_DOWN, _STEP_AGAIN, _STEPS_DOWN_MAX = 0.95, 0.97, 40
_WATCH_SECONDS = 0.05
_FINE_WATCH_SECONDS = 0.004
_DELAY_RATE, _DELAY_SECONDS = 2000, 25.0
_DELAY_P50_MAX, _DELAY_P99_MAX = 1.2, 2.5

LOAD = Load("randwrite", 4096, depth=32, seconds=4.0, size=DISK_BYTES, fresh=True)


@dataclass(frozen=True)
class Run:
    """One run: writes answered a second, writes stored a second, processor microseconds a write."""

    answered: float
    stored: float
    cpu_us: float
    kept: bool


def run_ours(site: Site, uri: str, load: Load) -> Run:
    """Load on a settled site. `kept`: whether it stayed in recording all the time."""
    site.settle()
    site.trim_journal()
    before = cpu_seconds(site.pids)
    with Watch(site.facts, _WATCH_SECONDS) as watch:
        sample = run_fio(load, uri)
        seen = watch.observed()
    site.settle()
    writes = int(seen.head[-1] - seen.head[0])
    spent = cpu_seconds(site.pids) - before
    stored = _stored_rate(seen)
    return Run(sample.requests, stored, spent / max(writes, 1) * 1e6, seen.stayed_recording)


def _stored_rate(seen: Observed) -> float:
    """Records given back a second, from the first to the last that the load made."""
    busy = np.flatnonzero(np.diff(seen.head) > 0)
    if len(busy) < 2:
        raise BenchFailed("The load left no records.")
    first, last = int(busy[0]), int(busy[-1]) + 1
    span = float(seen.at[last] - seen.at[first])
    return float(seen.freed[last] - seen.freed[first]) / span


def run_mirror(mirror: Mirror, load: Load) -> Run:
    """Free load on QEMU's mirror; BenchFailed if it stopped to follow each write."""
    before = cpu_seconds(mirror.pids)
    sample: Sample = run_fio(load, mirror.uri)
    spent = cpu_seconds(mirror.pids) - before
    if mirror.job_state() != "ready":
        raise BenchFailed("QEMU's mirror did not keep up: it is no longer ready.")
    # fio's count leaves out the ramp, the processor time does not.
    writes = sample.requests * (load.seconds + 0.3)
    return Run(sample.requests, sample.requests, spent / writes * 1e6, kept=True)


def find_rate(site: Site, uri: str, load: Load, free: Run) -> int:
    """The highest rate, within a step, that keeps the stream in recording."""
    rate = free.answered
    for _ in range(_STEPS_DOWN_MAX):
        if run_ours(site, uri, replace(load, rate=round(rate))).kept:
            return round(rate)
        rate *= _STEP_DOWN
    raise BenchFailed(f"Even {rate:.0f} writes a second do not stay in recording.")


def alternate(site: Site, uri: str, mirror: Mirror, load: Load) -> tuple[list[Run], list[Run]]:
    """Runs of ours and free runs of the mirror; ours are lowered until all of them are kept."""
    for _ in range(_STEPS_DOWN_MAX):
        ours: list[Run] = []
        theirs: list[Run] = []
        for _ in range(ROUNDS):
            ours.append(run_ours(site, uri, load))
            if not ours[-1].kept:
                break
            theirs.append(run_mirror(mirror, replace(load, rate=None)))
        else:
            return ours, theirs
        load = replace(load, rate=round(_STEP_AGAIN * ours[-1].answered))
    raise BenchFailed("No rate was kept in all rounds.")


def rate_cases(site: Site, uri: str, mirror: Mirror, load: Load) -> Iterator[Case]:
    """Sustained rate and processor time for one kind of data, and the free run."""
    name = f"{load.compressible}_percent_compressible" if load.compressible else "incompressible"
    free = run_ours(site, uri, load)
    if not free.kept:
        load = replace(load, rate=find_rate(site, uri, load, free))
    ours, theirs = alternate(site, uri, mirror, load)
    stored = median(run.stored for run in ours)
    peer = median(run.stored for run in theirs)
    answered = round(median(run.answered for run in ours))
    note = f"answered {answered}/s, recording in every round"
    yield Case(BENCH, f"sustained_{name}", "writes/s", stored, PEER, peer, GOAL_RATE, note=note)
    spent, peers = median(run.cpu_us for run in ours), median(run.cpu_us for run in theirs)
    yield Case(BENCH, f"cpu_{name}", "us/write", spent, PEER, peers, GOAL_CPU, better="lower")
    note = "stayed in recording" if free.kept else "left recording: the tap marked, nobody waited"
    yield Case(BENCH, f"free_run_{name}", "writes/s", free.answered, PEER, peer, note=note)


def delay_cases(directory: Path) -> Iterator[Case]:
    """From record to stored at a steady rate, with the journal on a real file system."""
    with workspace(REAL) as real, run_site(directory, SiteOptions(store_dir=real)) as site:
        uri = site.attach(make_disk(directory / "delay.img", DISK_BYTES))
        site.settle()
        load = replace(LOAD, rate=_DELAY_RATE, seconds=_DELAY_SECONDS)
        with Watch(site.facts, _FINE_WATCH_SECONDS) as watch:
            sample = run_fio(load, uri)
            site.settle()
            seen = watch.observed()
    if not seen.stayed_recording:
        raise BenchFailed("The stream left recording at 2,000 writes a second.")
    waited = delays(seen)
    interval = float(np.median(np.diff(seen.at)))
    note = f"{sample.requests:.0f} writes/s, too long by at most {2000 * interval:.0f} ms"
    for share, limit in ((50, _DELAY_P50_MAX), (99, _DELAY_P99_MAX)):
        case = f"delay_stored_p{share}"
        found = float(np.percentile(waited, share))
        yield Case(BENCH, case, "s", found, "limit", limit, 1.0, better="lower", note=note)


def cases() -> Iterator[Case]:
    """Every case of this benchmark."""
    with workspace() as directory:
        yield from delay_cases(directory)
    with workspace() as directory, ExitStack() as stack:
        ours, source, target = (
            make_disk(directory / f"{name}.img", DISK_BYTES)
            for name in ("ours", "source", "target")
        )
        mirror = stack.enter_context(qemu_mirror(directory, source, target))
        site = stack.enter_context(run_site(directory))
        uri = site.attach(ours)
        for compressible in (0, 50):
            load = replace(LOAD, compressible=compressible)
            yield from rate_cases(site, uri, mirror, load)


if __name__ == "__main__":
    sys.exit(run(cases()))
