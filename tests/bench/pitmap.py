"""The map of a point in time, and opening the journal before it: seconds and memory.

`.venv/bin/python -m tests.bench.pitmap [MILLIONS …]`. A journal of 4 KiB writes over a disk of 64
GiB, half of them in a sixteenth of it, lies in memory; the peer is the figure that the design
measured for 10 million writes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from host_agent.wire.crc import crc32c
from host_agent.wire.record import RECORD
from tests.bench.cases import Case, tell
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from workers.journal.pitmap import get_map
from workers.journal.points import resolve
from workers.journal.reader import open_journal

MILLION = 1_000_000
DESIGN_SECONDS, DESIGN_MIB = 1.75e-7, 512.0
_DISK_BYTES = 64 << 30
_BLOCK_BYTES = 4096
_FRAME_RECORDS = 1024
_SEGMENT_FRAMES = 4


def journal_of(count: int) -> JournalBuilder:
    """A journal of `count` writes. Their data is zeroes, which compress to nothing."""
    builder = JournalBuilder(MemoryStore())
    builder.generation({"disk": _DISK_BYTES})
    builder.end()
    builder.frame()
    rng = np.random.default_rng(5)
    data = bytes(_BLOCK_BYTES * _FRAME_RECORDS)
    crc = crc32c(data[:_BLOCK_BYTES])
    seq = builder.model.seq
    for number in range(count // _FRAME_RECORDS):
        records = np.zeros(_FRAME_RECORDS, RECORD)
        records["seq"] = np.arange(seq + 1, seq + 1 + _FRAME_RECORDS)
        seq += _FRAME_RECORDS
        builder.now += MILLION
        records["time"] = builder.now
        blocks = _DISK_BYTES // _BLOCK_BYTES
        near = rng.integers(0, blocks // 16, _FRAME_RECORDS)
        far = rng.integers(0, blocks, _FRAME_RECORDS)
        is_near = rng.random(_FRAME_RECORDS) < 0.5
        records["offset"] = np.where(is_near, near, far) * _BLOCK_BYTES
        records["length"] = records["payload_length"] = _BLOCK_BYTES
        records["crc"], records["op"] = crc, 1
        builder.add_frame(records, data)
        if number % _SEGMENT_FRAMES == _SEGMENT_FRAMES - 1:
            builder.segment()
    builder.segment()
    return builder


def _anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """The most anonymous memory that was in use inside the block beyond that at its start, MiB."""
    before = peak = _anonymous_mib()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, _anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak - before
    finally:
        over.set()
        thread.join()


def cases(millions: tuple[int, ...] = (1, 10)) -> Iterator[Case]:
    """Opening and mapping journals of so many million writes."""
    for million in millions:
        builder = journal_of(million * MILLION)
        began = time.perf_counter()
        with (
            peak_memory() as opening,
            open_journal(builder.store, builder.identity, builder.tenant_key) as journal,
        ):
            seconds = time.perf_counter() - began
            yield Case("pitmap", f"open_{million}m", "s", seconds, "none", 0, better="lower")
            yield Case("pitmap", f"open_{million}m_memory", "MiB", opening(), "design", DESIGN_MIB)
            began = time.perf_counter()
            with peak_memory() as mapping:
                get_map(journal, resolve(journal, "latest-write")).close()
                yield _seconds(f"map_{million}m", time.perf_counter() - began, million)
                yield Case(
                    "pitmap", f"map_{million}m_memory", "MiB", mapping(), "design", DESIGN_MIB
                )


def _seconds(case: str, seconds: float, million: int) -> Case:
    design = DESIGN_SECONDS * million * MILLION
    return Case("pitmap", case, "s", seconds, "design", design, better="lower")


if __name__ == "__main__":
    tell(cases(tuple(map(int, sys.argv[1:])) or (1, 10)))
