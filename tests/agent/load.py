"""Block load with flushes, and whether one stretch of it is as good as another."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.demo.processes import program

#: A stretch may do this much worse than the baseline: two cores are shared with the load itself.
THROUGHPUT_SHARE_MIN = 0.6
#: Added latency, milliseconds: the bound at the 99th percentile, and for any single request. The
#: latter is 50 ms in the product's promise; a shared machine takes the rest.
P99_ADDED_MS_MAX = 2.0
WORST_MS_MAX = 250.0


@dataclass(frozen=True)
class Stretch:
    """What a machine saw of its disk for some seconds. Latencies in milliseconds."""

    writes_per_second: float
    p99_ms: float
    worst_ms: float
    errors: int


def start_load(uri: str, folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Random 4 KiB writes at depth 8, each 32nd followed by a flush."""
    job = [
        *(program("fio"), "--name=load", "--thread", "--ioengine=nbd", f"--uri={uri}"),
        *("--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=60m", "--fsync=32", "--randrepeat=0"),
        *(f"--runtime={seconds}", "--time_based", "--output-format=json", f"--aux-path={folder}"),
    ]
    return subprocess.Popen(
        job, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read_load(load: subprocess.Popen[str], seconds: float) -> Stretch:
    """Wait for its end; a load that does not end in time saw its disk stand still."""
    try:
        said, _ = load.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        load.kill()
        load.communicate()
        return Stretch(0.0, 1000 * seconds, 1000 * seconds, 0)
    job = json.loads(said[said.index("{") :])["jobs"][0]
    latency = job["write"]["clat_ns"]
    return Stretch(
        job["write"]["iops"],
        latency["percentile"]["99.000000"] / 1e6,
        latency["max"] / 1e6,
        int(job["error"]) + int(load.returncode != 0),
    )


def complaints(baseline: Stretch, during: Stretch) -> list[str]:
    """What the machine could have noticed."""
    found = []
    if during.errors:
        found.append(f"{during.errors} errors")
    if during.writes_per_second < THROUGHPUT_SHARE_MIN * baseline.writes_per_second:
        found.append(f"throughput {during.writes_per_second:.0f}/s")
    if during.p99_ms > 2 * baseline.p99_ms + P99_ADDED_MS_MAX:
        found.append(f"p99 {during.p99_ms:.2f} ms")
    if during.worst_ms > max(WORST_MS_MAX, 2 * baseline.worst_ms):
        found.append(f"worst {during.worst_ms:.0f} ms")
    return found
