"""Where a benchmark keeps its disks and sockets, and how each disk is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import BenchFailed

TMPFS = Path("/dev/shm")
#: Not tmpfs: where O_DIRECT means something.
REAL = Path("/var/tmp")
_CHUNK_BYTES = 1024 * 1024
#: Disks, a ring of 1 GiB and a journal lie in memory; swapping or worse would be measured instead.
_MEMORY_BYTES_MIN = 5 * 1024 * 1024 * 1024


def memory_available() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise BenchFailed("/proc/meminfo does not tell how much memory is free.")


@contextmanager
def workspace(parent: Path = TMPFS) -> Iterator[Path]:
    """A directory that is gone afterwards. Its name is short: sockets lie in it.

    BenchFailed where it would be in memory that the machine does not have.
    """
    if parent == TMPFS and memory_available() < _MEMORY_BYTES_MIN:
        free = memory_available() >> 20
        raise BenchFailed(f"Only {free} MiB of memory are free; 5 GiB are needed. See {TMPFS}.")
    directory = Path(tempfile.mkdtemp(prefix="hfb-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_disk(path: Path, size: int) -> Path:
    """A raw file of `size` bytes, each written and durable: no peer has to allocate."""
    chunk = os.urandom(_CHUNK_BYTES)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for at in range(0, size, _CHUNK_BYTES):
            file.write(chunk[: min(_CHUNK_BYTES, size - at)])
        file.flush()
        os.fsync(file.fileno())
    return path
