"""What a guest feels while something fails: `python -m tests.bench.latency`.

Random 4 KiB writes at a fixed rate, far below what the tap can do, so that a wait is seen and not
hidden by a queue. For each fault of the failure model: the longest wait of a single request, beside
the bound of 50 ms. The first row is the same load with nothing failing: what the machine itself
adds. A checkpoint's row holds completions on purpose. Then the same in mirror mode, in which the
machine's writes wait for QEMU's own disk and for the tap.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.demo.processes import program
from tests.bench.cases import Case, run
from tests.bench.processes import BenchFailed
from tests.hypervisor.machines import Daemon, attach, wait_protected
from tests.integration.faults import Faults, FolderOfObjects, give_credentials
from tests.integration.place import MIB, Place, made_place
from tests.servers.faulty_s3 import running_faulty_s3

#: No single request may wait longer because of Holdfast, ms.
LIMIT_MS = 50.0
_DISK_BYTES = 64 * MIB
_RATE = 500
_SECONDS = 8
_BEFORE_SECONDS = 1.5


@dataclass(frozen=True)
class Felt:
    """A load's latencies, ms."""

    median: float
    p999: float
    longest: float


def _load(uri: str) -> subprocess.Popen[str]:
    arguments = [
        program("fio"), "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite",
        "--bs=4k", f"--size={_DISK_BYTES}", "--iodepth=4", f"--rate_iops={_RATE}", "--time_based",
        f"--runtime={_SECONDS}", "--norandommap", "--lat_percentiles=1", "--clat_percentiles=0",
        "--percentile_list=50:99.9", "--output-format=json",
    ]  # fmt: skip
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _felt(output: str) -> Felt:
    (job,) = json.loads(output[output.index("{") :])["jobs"]
    if job["error"]:
        raise BenchFailed(f"fio met error {job['error']}.")
    found = job["write"]["lat_ns"]
    share = found["percentile"]
    return Felt(share["50.000000"] / 1e6, share["99.900000"] / 1e6, found["max"] / 1e6)


def _under(uri: str, fail: Callable[[], object]) -> Felt:
    """The load, with something that happens in its middle."""
    with _load(uri) as fio:
        time.sleep(_BEFORE_SECONDS)
        fail()
        said, complaint = fio.communicate(timeout=10 * _SECONDS)
    if fio.returncode:
        raise BenchFailed(f"fio ended with {fio.returncode}: {complaint[-300:]}")
    return _felt(said)


def _rows(place: Place, faults: Faults) -> dict[str, Callable[[], object]]:
    def checkpoint() -> None:
        place.site.checkpoint("measured", wait=False)

    return {"nothing": lambda: None, **faults.kinds, "checkpoint": checkpoint}


def _measure(
    mode: str, uri: str, rows: dict[str, Callable[[], object]], settle: Callable[[], object]
) -> Iterator[Case]:
    for name, fail in rows.items():
        felt = _under(uri, fail)
        settle()
        note = f"median {felt.median:.2f} ms, p99.9 {felt.p999:.2f} ms, {_RATE} writes/s"
        note += f", load {os.getloadavg()[0]:.0f}"
        yield Case(
            "latency", f"{mode}longest wait, {name}", "ms", felt.longest, "limit", LIMIT_MS,
            goal=1.0, better="lower", note=note,
        )  # fmt: skip


def in_disk_mode(place: Place, faults: Faults) -> Iterator[Case]:
    """The machine's disk is the tap's export."""
    uri = place.uri
    yield from _measure("", uri, _rows(place, faults), place.drain)


def in_mirror_mode(place: Place, faults: Faults) -> Iterator[Case]:
    """The machine's disk is its own; QEMU writes to the tap as well before it answers."""
    daemon = Daemon(place.processes, place.folder, place.disk)
    daemon.start()
    attach(place, daemon.qmp)
    wait_protected(place)

    def kill_tap() -> None:
        place.kill(place.site.tap)
        time.sleep(_BEFORE_SECONDS)
        place.site.start_tap()

    rows = {**_rows(place, faults), "tap killed": kill_tap}
    uri = f"nbd+unix:///guest?socket={daemon.nbd}"
    yield from _measure("mirrored, ", uri, rows, lambda: wait_protected(place, 120))


@contextmanager
def _place() -> Iterator[tuple[Place, Faults]]:
    with (
        tempfile.TemporaryDirectory(prefix="hfb-latency-", dir="/dev/shm") as folder,
        running_faulty_s3() as store,
        made_place(Path(folder), _DISK_BYTES, store.url()) as place,
    ):
        store.objects = FolderOfObjects(place.bucket)  # type: ignore[assignment]
        give_credentials(place)
        yield place, Faults(place, store, random.Random(1))


def cases() -> Iterator[Case]:
    """Each fault once, in both modes."""
    with _place() as (place, faults):
        place.protect()
        yield from in_disk_mode(place, faults)
    with _place() as (place, faults):
        place.site.start_ingest()
        place.site.start_host()
        yield from in_mirror_mode(place, faults)


if __name__ == "__main__":
    sys.exit(run(cases()))
