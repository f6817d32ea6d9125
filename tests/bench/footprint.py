"""What Holdfast takes beside speed: memory, idle time, journal bytes, store requests.

`python -m tests.bench.footprint`. Each figure stands beside a limit, which is its peer: a ratio of
at most 1.0 meets the goal. Memory is the highest of what was seen under load, without the pages of
rings, which are counted once, as the ring's own configured size, whoever maps them. Idle time is
what the scheduler counted for tap, agent and ingest over half a minute in which nobody wrote.
The journal's bytes are the objects of the chain, all of them, beside `zstd -1` over the very bytes
that were written, in their order. Requests are counted by a proxy before a real S3 server.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.bench.cases import Case, run
from tests.bench.counting_proxy import Counter, Request, counting_proxy
from tests.bench.load import Load, run_fio
from tests.bench.nbd_writer import NbdWriter, corpus
from tests.bench.ours import MIB, drained, run_tap
from tests.bench.pipeline import LOAD
from tests.bench.processes import (
    cpu_seconds_fine,
    program,
    resident_beside,
    resident_bytes,
)
from tests.bench.site import GROUP, Site, SiteOptions, run_site
from tests.bench.workspace import REAL, make_disk, workspace
from tests.servers.seaweed import CREDENTIALS, running_seaweed

BENCH = "footprint"
DISK_BYTES = 256 * MIB
_TAP_MIB_MAX, _AGENT_MIB_MAX = 32.0, 120.0
_IDLE_PERCENT_MAX = 0.2
_IDLE_SECONDS = 30.0
_JOURNAL_RATIO_MAX = 1.05
_CORPUS_BYTES = 192 * MIB
_LOAD_SECONDS = 6.0
_SAMPLE_SECONDS = 0.1
_STREAM_RATE = 8000


def limit(case: str, unit: str, ours: float, most: float, note: str = "") -> Case:
    """A figure that may not be above a number."""
    return Case(BENCH, case, unit, ours, "limit", most, 1.0, better="lower", note=note)


class Peak:
    """The highest of a figure inside its block."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.value = read()
        self._read = read
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            self.value = max(self.value, self._read())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def tap_memory_cases(directory: Path) -> Iterator[Case]:
    """The tap under small and large writes, the ring drained."""
    small = Load("randwrite", 4096, depth=32, seconds=_LOAD_SECONDS, size=DISK_BYTES)
    loads = {"4k": small, "1m": replace(small, kind="write", block_bytes=MIB)}
    for name, load in loads.items():
        with workspace(directory) as place, run_tap(place) as tap:
            attached = tap.attach("memory", make_disk(place / "disk.img", DISK_BYTES), 1024 * MIB)

            def beside(pid: int = tap.pid, run_dir: Path = place) -> float:
                return resident_beside(pid, run_dir) / MIB

            with drained(place, attached), Peak(beside) as peak:
                run_fio(load, attached.uri)
            note = f"in all {resident_bytes(tap.pid) / MIB:.0f} MiB with a ring of 1 GiB"
        yield limit(f"tap_memory_{name}", "MiB", peak.value, _TAP_MIB_MAX, note)


def agent_memory_case(directory: Path) -> Iterator[Case]:
    """The agent under the pipeline's load, as fast as it takes it."""
    with workspace(directory) as place, run_site(place) as site:
        uri = site.attach(make_disk(place / "disk.img", DISK_BYTES))
        site.settle()

        def beside() -> float:
            return resident_beside(site.agent.pid, place) / MIB

        with Peak(beside) as peak:
            run_fio(replace(LOAD, seconds=_LOAD_SECONDS), uri)
            site.settle()
        note = f"in all {resident_bytes(site.agent.pid) / MIB:.0f} MiB resident"
    yield limit("agent_memory", "MiB", peak.value, _AGENT_MIB_MAX, note)


def idle_cases(directory: Path) -> Iterator[Case]:
    """Tap, agent and ingest while nobody writes, for 1 disk and for 20."""
    for count in (1, 20):
        with workspace(directory) as place, run_site(place) as site:
            for number in range(count):
                site.attach(make_disk(place / f"disk{number}.img", 16 * MIB))
            site.settle()
            time.sleep(3.0)
            before = cpu_seconds_fine(site.pids)
            time.sleep(_IDLE_SECONDS)
            percent = (cpu_seconds_fine(site.pids) - before) / _IDLE_SECONDS * 100
        note = f"{percent:.3f} % for all of {count}"
        yield limit(
            f"idle_disk_of_{count}", "% of a core", percent / count, _IDLE_PERCENT_MAX, note
        )


def journal_cases(directory: Path) -> Iterator[Case]:
    """What a busy stream's journal takes, beside zstd over the same bytes."""
    data = memoryview(corpus(_CORPUS_BYTES))
    in_order = list(range(0, _CORPUS_BYTES, 64 * 1024))
    scattered = list(range(0, _CORPUS_BYTES, 4096))
    random.Random(1).shuffle(scattered)
    for name, offsets, length in (("64k", in_order, 64 * 1024), ("4k", scattered, 4096)):
        writes = [(at, data[at : at + length]) for at in offsets]
        peer = zstd_bytes(directory, writes)
        ours = journal_bytes(directory, writes, _STREAM_RATE * 4096 / length)
        note = f"{_CORPUS_BYTES // MIB} MiB in writes of {length // 1024} KiB"
        goal = _JOURNAL_RATIO_MAX
        case = f"journal_{name}"
        yield Case(BENCH, case, "bytes", ours, "zstd -1", peer, goal, better="lower", note=note)


def zstd_bytes(directory: Path, writes: list[tuple[int, memoryview]]) -> int:
    """What the program makes of the written bytes in the order of the writes."""
    path = directory / "written"
    with path.open("wb") as file:
        for _, data in writes:
            file.write(data)
    subprocess.run([program("zstd"), "-q", "-1", "--single-thread", str(path)], check=True)
    compressed = path.with_name("written.zst")
    size = compressed.stat().st_size
    for each in (path, compressed):
        each.unlink()
    return size


def journal_bytes(directory: Path, writes: list[tuple[int, memoryview]], rate: float) -> int:
    """What the chain grows by."""
    with workspace(directory) as place, run_site(place) as site:
        uri = site.attach(make_disk(place / "disk.img", DISK_BYTES))
        site.settle()
        before = chain_bytes(site)
        writer = NbdWriter(uri)
        writer.write_all(writes, rate)
        writer.close()
        site.settle()
        return chain_bytes(site) - before


def chain_bytes(site: Site) -> int:
    """All segments' bytes."""
    return sum(path.stat().st_size for path in site.chain.iterdir())


def request_cases(directory: Path) -> Iterator[Case]:
    """Requests to a real S3 server, while nobody writes and while somebody does."""
    with workspace(REAL) as real, ExitStack() as stack:
        seaweed = stack.enter_context(running_seaweed(real))
        url = seaweed.make_bucket("journal")
        endpoint, counter = stack.enter_context(counting_proxy(seaweed.endpoint))
        options = SiteOptions(
            store_url=url.replace(seaweed.endpoint, endpoint),
            store_environment={
                "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key_id,
                "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_access_key,
            },
        )
        site = stack.enter_context(run_site(directory, options))
        uri = site.attach(make_disk(directory / "disk.img", 64 * MIB))
        site.settle()
        time.sleep(3.0)
        idle = requests_during(counter, lambda: time.sleep(_IDLE_SECONDS))
        load = replace(LOAD, rate=2000, seconds=15.0, size=64 * MIB)
        busy = requests_during(counter, lambda: run_fio(load, uri))
        site.settle()
    yield Case(
        BENCH,
        "requests_idle",
        "requests",
        len(idle),
        "limit",
        0,
        1.0,
        better="lower",
        note=f"in {_IDLE_SECONDS:.0f} s",
    )
    commits = len({request.target for request in busy if is_commit(request)})
    note = f"{len(busy)} requests, {commits} commits"
    yield limit("requests_per_commit", "requests", len(busy) / max(commits, 1), 1.0, note)


def requests_during(counter: Counter, act: Callable[[], object]) -> list[Request]:
    """What passed while something was done; the tenant's statement of each minute left out."""
    before = len(counter.requests)
    act()
    return [request for request in counter.requests[before:] if "/asof/" not in request.target]


def is_commit(request: Request) -> bool:
    """Whether a request creates a segment."""
    return (
        request.method == "PUT" and f"/{GROUP}/" in request.target and "/chain/" in request.target
    )


def cases() -> Iterator[Case]:
    """Every case of this benchmark."""
    parts = (tap_memory_cases, agent_memory_case, idle_cases, journal_cases, request_cases)
    for part in parts:
        with workspace() as directory:
            yield from part(directory)


if __name__ == "__main__":
    sys.exit(run(cases()))
