"""Load from fio's nbd engine, and what it saw."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.processes import BenchFailed, program

_GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Load:
    """What fio does. `seconds` come after a short time that does not count.

    `fresh` gives each request bytes of its own (else fio sends the same buffers again and
    again, which is cheaper for fio and makes no difference to a server that does not look at
    them); `compressible` is the share of those bytes, in percent, that a compressor can win.
    `clients` do this at once, each with a connection of its own and `depth` requests in flight.
    """

    kind: str
    block_bytes: int
    depth: int
    seconds: float
    size: int
    rate: int | None = None
    fresh: bool = False
    compressible: int = 0
    clients: int = 1


@dataclass(frozen=True)
class Sample:
    """Requests and bytes a second; latencies in microseconds, from submission to completion."""

    requests: float
    bandwidth: float
    p50_us: float
    p99_us: float
    count: float


def _arguments(load: Load, uri: str) -> list[str]:
    arguments = [
        "--name=load",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={load.kind}",
        f"--bs={load.block_bytes}",
        f"--iodepth={load.depth}",
        f"--numjobs={load.clients}",
        "--group_reporting",
        f"--size={load.size}",
        "--time_based",
        f"--runtime={round(load.seconds * 1000)}ms",
        "--ramp_time=300ms",
        "--norandommap",
        "--randrepeat=0",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--percentile_list=50:99",
    ]
    if load.fresh:
        arguments.append("--refill_buffers")
    else:
        arguments.append("--scramble_buffers=0")
    if load.compressible:
        arguments.append(f"--buffer_compress_percentage={load.compressible}")
        arguments.append(f"--buffer_compress_chunk={load.block_bytes}")
    if load.rate is not None:
        arguments += [f"--rate_iops={load.rate}", "--rate_process=linear"]
    return arguments


def run_fio(load: Load, uri: str) -> Sample:
    """One run; BenchFailed with what fio said if it fails."""
    with tempfile.TemporaryDirectory(prefix="hfb-fio-") as directory:
        output = Path(directory) / "fio.json"
        command = [program("fio"), *_arguments(load, uri)]
        command += ["--output-format=json", f"--output={output}"]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=load.seconds + _GRACE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchFailed("fio did not end: the server or the machine stands still.") from None
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace")
            raise BenchFailed(f"fio ended with {done.returncode}: {said}")
        return _read(output, load)


def _read(output: Path, load: Load) -> Sample:
    text = output.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return _sample(job["read" if load.kind.endswith("read") else "write"])


def _sample(side: Mapping[str, Any]) -> Sample:
    if not side["total_ios"]:
        raise BenchFailed("fio completed no request.")
    percentiles = side["lat_ns"]["percentile"]
    return Sample(
        requests=float(side["iops"]),
        bandwidth=float(side["bw_bytes"]),
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
        count=float(side["total_ios"]),
    )


def middle(samples: list[Sample]) -> Sample:
    """The median of each field by itself."""
    return Sample(**{f.name: median(getattr(s, f.name) for s in samples) for f in fields(Sample)})


def interleave(rounds: int, runs: Mapping[str, Callable[[], Sample]]) -> dict[str, Sample]:
    """Each run once a round, in order, so that a noisy minute hits all of them; medians."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
    return {name: middle(found) for name, found in samples.items()}
