"""Where a benchmark keeps its disks and sockets, and how each disk is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TMPFS = Path("/dev/shm")
#: Not tmpfs: where O_DIRECT means something.
REAL = Path("/var/tmp")
_CHUNK_BYTES = 1024 * 1024


@contextmanager
def workspace(parent: Path = TMPFS) -> Iterator[Path]:
    """A directory that is gone afterwards. Its name is short: sockets lie in it."""
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
