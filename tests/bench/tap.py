"""The tap against ordinary NBD servers that protect nothing. `python -m tests.bench.tap`.

Load is fio's nbd engine over a Unix socket; each server has a file of its own, of the same size,
fully written beforehand, on tmpfs unless the case says otherwise; none is pinned to a core. Runs
are short and alternate; each figure is a median. The tap intercepts (checksum, ring) and a second
process takes the records from its ring and throws them away; in *dirty* mode, where the tap only
marks what changes, it shows what interception costs. QEMU's client is `qemu-img bench`, on the
file itself and on our export of another such file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench.cases import Case, run
from tests.bench.load import Load, Sample, interleave, run_fio
from tests.bench.ours import MIB, Tap, drained, run_tap
from tests.bench.peers import nbdkit_file, qemu_nbd
from tests.bench.processes import BenchFailed, program
from tests.bench.workspace import REAL, make_disk, workspace

BENCH = "tap"
DISK_BYTES = 512 * MIB
RING_BYTES = 128 * MIB
LARGE_RING_BYTES = 1024 * MIB
ROUNDS = 7
_NATIVE_REQUESTS = {1: 40_000, 16: 150_000, 64: 150_000}

SMALL = Load(kind="randwrite", block_bytes=4096, depth=32, seconds=1.5, size=DISK_BYTES)
LARGE = Load(kind="write", block_bytes=MIB, depth=8, seconds=1.5, size=DISK_BYTES)
OURS, QEMU, NBDKIT = "ours", "qemu-nbd", "nbdkit file"

Medians = dict[str, Sample]


@dataclass(frozen=True)
class Servers:
    """The URI of each server, by name."""

    uris: dict[str, str]

    def measure(self, load: Load, *names: str) -> Medians:
        """Medians of alternating runs against the named servers (all of them by default)."""

        def run(uri: str) -> Callable[[], Sample]:
            return lambda: run_fio(load, uri)

        chosen = names or tuple(self.uris)
        return interleave(ROUNDS, {name: run(self.uris[name]) for name in chosen})


def throughput(case: str, medians: Medians, peer: str, goal: float | None) -> Case:
    """Requests a second."""
    ours, theirs = medians[OURS].requests, medians[peer].requests
    return Case(BENCH, case, "requests/s", ours, peer, theirs, goal)


def latency(case: str, medians: Medians, field: str, goal: float) -> Case:
    """A latency in microseconds beside qemu-nbd's."""
    ours, theirs = getattr(medians[OURS], field), getattr(medians[QEMU], field)
    return Case(BENCH, case, "us", ours, QEMU, theirs, goal, better="lower")


def small_cases(servers: Servers) -> Iterator[Case]:
    """4 KiB at random, at depths 32, 8 and 1."""
    deep = servers.measure(SMALL)
    yield throughput("write_4k_depth32", deep, QEMU, 3.0)
    yield throughput("write_4k_depth32", deep, NBDKIT, 1.1)
    yield latency("write_4k_depth32_p99", deep, "p99_us", 1.0)
    some = servers.measure(replace(SMALL, depth=8, seconds=1.0), OURS, QEMU)
    yield latency("write_4k_depth8_p99", some, "p99_us", 1.0)
    single = servers.measure(replace(SMALL, depth=1, seconds=1.0), OURS, QEMU)
    yield latency("write_4k_depth1_p50", single, "p50_us", 0.6)
    yield latency("write_4k_depth1_p99", single, "p99_us", 1.0)
    reads = servers.measure(replace(SMALL, kind="randread"))
    yield throughput("read_4k_depth32", reads, NBDKIT, 1.5)
    yield latency("read_4k_depth32_p99", reads, "p99_us", 1.0)
    # One client is busy with itself before such a server is: two show what the servers can do.
    reads = servers.measure(replace(SMALL, kind="randread", depth=16, clients=2))
    yield throughput("read_4k_2_clients", reads, NBDKIT, 1.5)
    single = servers.measure(replace(SMALL, kind="randread", depth=1, seconds=1.0), OURS, QEMU)
    yield latency("read_4k_depth1_p99", single, "p99_us", 1.0)


def large_cases(servers: Servers) -> Iterator[Case]:
    """1 MiB in sequence, beside the better of both."""
    for kind in ("write", "read"):
        medians = servers.measure(replace(LARGE, kind=kind))
        peer = max((QEMU, NBDKIT), key=lambda name: medians[name].bandwidth)
        ours, theirs = medians[OURS].bandwidth / MIB, medians[peer].bandwidth / MIB
        yield Case(BENCH, f"{kind}_1m_sequential", "MiB/s", ours, peer, theirs, 1.0)


def tmpfs_cases(directory: Path, tap: Tap) -> Iterator[Case]:
    """Everything beside qemu-nbd and nbdkit, on tmpfs."""
    disks = {name: make_disk(directory / f"{name[:4]}.img", DISK_BYTES) for name in _TMPFS_SERVERS}
    with ExitStack() as stack:
        uris = {
            QEMU: stack.enter_context(qemu_nbd(directory, disks[QEMU])),
            NBDKIT: stack.enter_context(nbdkit_file(directory, disks[NBDKIT])),
        }
        attached = tap.attach("small", disks[OURS], RING_BYTES)
        with drained(directory, attached):
            yield from small_cases(Servers({OURS: attached.uri, **uris}))
        # A taker that is late by one turn of the scheduler must not find a full ring.
        large = make_disk(directory / "large.img", DISK_BYTES)
        attached = tap.attach("large", large, LARGE_RING_BYTES)
        with drained(directory, attached):
            yield from large_cases(Servers({OURS: attached.uri, **uris}))
            native = make_disk(directory / "native.img", DISK_BYTES)
            yield from native_cases(native, attached.uri)


_TMPFS_SERVERS = (OURS, QEMU, NBDKIT)


def interception_case(directory: Path, tap: Tap) -> Iterator[Case]:
    """Ours with a ring of 1 GiB, beside ours whose stream is dirty: the same tap, no copy."""
    on = tap.attach("with", make_disk(directory / "with.img", DISK_BYTES), LARGE_RING_BYTES)
    off = tap.attach("without", make_disk(directory / "without.img", DISK_BYTES), RING_BYTES)
    servers = Servers({OURS: on.uri, "without interception": off.uri})
    with drained(directory, on):
        medians = servers.measure(SMALL)
    yield throughput("interception_4k_depth32", medians, "without interception", 0.8)


def direct_case(directory: Path, tap: Tap) -> Iterator[Case]:
    """O_DIRECT on a real file system, beside qemu-nbd with io_uring."""
    with workspace(REAL) as real, ExitStack() as stack:
        ours, theirs = (make_disk(real / f"{n}.img", DISK_BYTES) for n in ("ours", "qemu"))
        attached = tap.attach("direct", ours, RING_BYTES, cache="none")
        options = ("--aio=io_uring", "--cache=none")
        uri = stack.enter_context(qemu_nbd(directory, theirs, *options))
        stack.enter_context(drained(directory, attached))
        medians = Servers({OURS: attached.uri, QEMU: uri}).measure(SMALL)
    peer = f"{QEMU} io_uring cache=none"
    medians[peer] = medians[QEMU]
    note = f"the tap's engine: {tap.engine()}"
    yield replace(throughput("direct_write_4k_depth32", medians, peer, 1.0), note=note)
    yield latency("direct_write_4k_depth32_p99", medians, "p99_us", 1.0)


def native_cases(file: Path, uri: str) -> Iterator[Case]:
    """QEMU's block layer on a raw file directly, and on our export; 4 KiB writes."""
    for depth, count in _NATIVE_REQUESTS.items():

        def run(target: str, depth: int = depth, count: int = count) -> Callable[[], Sample]:
            return lambda: qemu_img_bench(target, depth, count)

        medians = interleave(ROUNDS, {OURS: run(uri), "file": run(str(file))})
        medians["qemu-img bench on the file"] = medians["file"]
        yield throughput(f"native_depth{depth}", medians, "qemu-img bench on the file", None)


def qemu_img_bench(target: str, depth: int, count: int) -> Sample:
    """QEMU's own client. It steps through the disk by a stride that visits it out of order."""
    stride = 4096 * 1031
    command = [program("qemu-img"), "bench", "-w", "-f", "raw", "-t", "writeback"]
    command += ["-c", str(count), "-d", str(depth), "-s", "4096", "-S", str(stride), target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"completed in ([0-9.]+) seconds", done.stdout)
    if done.returncode != 0 or found is None:
        raise BenchFailed(f"qemu-img bench failed: {done.stdout}{done.stderr}")
    rate = count / float(found[1])
    return Sample(rate, rate * 4096, 0.0, 0.0, count)


def cases() -> Iterator[Case]:
    """Every case of this benchmark."""
    for part in (tmpfs_cases, interception_case, direct_case):
        with workspace() as directory, run_tap(directory) as tap:
            yield from part(directory, tap)


if __name__ == "__main__":
    sys.exit(run(cases()))
