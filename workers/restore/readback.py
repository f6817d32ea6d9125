"""Reading an image back: each region as soon as it is whole, while others are still written.

Reads go past the page cache where the file system can do that, so that they see what the disk
has, not what memory holds. A region that nothing was written to must be a hole.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.crc import crc32c_extend, span_crc
from host_agent.wire.limits import MIB, RECORD_PAYLOAD_BYTES_MAX
from workers.restore.imagecrc import zeroes_crc

#: Large enough that its bookkeeping does not count; a piece touches two at most.
REGION_BYTES = 16 * MIB
assert RECORD_PAYLOAD_BYTES_MAX <= REGION_BYTES
_READ_BYTES = 4 * MIB
#: What is copied and hashed at once: it stays in a processor's cache.
_HASH_BYTES = 256 * 1024

Bytes = NDArray[np.uint64]


class ReadBack:
    """The regions of one file. `take` by one thread at a time; `read` by several, of different
    regions. Every call may raise OSError."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        """`fd` is the file opened for reading, and stays its owner's; `size` in bytes."""
        self._fd = fd
        self._size = size
        count = -(-size // REGION_BYTES)
        self._missing = np.zeros(count, np.int64)
        self._is_read = np.zeros(count, bool)
        self._crc = np.full(count, zeroes_crc(REGION_BYTES), np.uint32)
        if size % REGION_BYTES:
            self._crc[-1] = zeroes_crc(size % REGION_BYTES)
        self._buffers = threading.local()
        self._direct = open_direct(path, os.O_RDONLY)

    def expect(self, start: Bytes, length: Bytes) -> None:
        """Pieces that will be written: bytes of the image."""
        for region, count in _by_region(start, length):
            np.add.at(self._missing, region, count)

    def take(self, start: Bytes, length: Bytes) -> list[int]:
        """Pieces that were written; which regions are whole by that and can be read."""
        whole: list[int] = []
        for region, count in _by_region(start, length):
            np.subtract.at(self._missing, region, count)
            touched = np.unique(region)
            whole += touched[self._missing[touched] == 0].tolist()
        # Without direct reads they would only show what memory holds.
        return list(dict.fromkeys(whole)) if self._direct >= 0 else []

    def read(self, region: int) -> int:
        """Read a whole region; how many bytes it has."""
        start = region * REGION_BYTES
        end = min(start + REGION_BYTES, self._size)
        crc, at = 0, start
        while at < end:
            length, buffer = self._read(at, min(_READ_BYTES, end - at))
            if not length:
                raise OSError(errno.EIO, "The file ends before its end")
            for done in range(0, length, _HASH_BYTES):
                crc = crc32c_extend(crc, buffer[done : min(done + _HASH_BYTES, length)])
            at += length
        self._crc[region] = crc
        self._is_read[region] = True
        return end - start

    def _read(self, at: int, length: int) -> tuple[int, mmap.mmap]:
        """At most `length` bytes: how many, and this thread's buffer, which holds them."""
        if not hasattr(self._buffers, "one"):
            self._buffers.one = mmap.mmap(-1, _READ_BYTES)
        buffer: mmap.mmap = self._buffers.one
        if self._direct >= 0:
            return min(os.preadv(self._direct, [buffer], at), length), buffer
        with memoryview(buffer) as whole, whole[:length] as part:
            return os.preadv(self._fd, [part], at), buffer

    def rest(self) -> Iterator[int]:
        """Regions that hold data and were not read yet. After the file was synced."""
        if self._direct < 0:
            with suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while at < self._size:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            region = at // REGION_BYTES
            if not self._is_read[region]:
                yield region
            at = (region + 1) * REGION_BYTES

    def value(self) -> int:
        """The whole file's CRC-32C, by what was read."""
        lengths = np.full(len(self._crc), REGION_BYTES, np.uint32)
        if self._size % REGION_BYTES:
            lengths[-1] = self._size % REGION_BYTES
        return span_crc(self._crc, lengths)

    def close(self) -> None:
        """Let go of what was opened here."""
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def open_direct(path: Path, mode: int) -> int:
    """The file, opened past the page cache, for reading at least; -1 if its file system cannot do
    that."""
    try:
        fd = os.open(path, mode | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(fd, [page], 0)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _by_region(
    start: Bytes, length: Bytes
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The pieces' regions and their bytes in them; then the same of those that reach into the
    next."""
    first = (start // np.uint64(REGION_BYTES)).astype(np.int64)
    in_first = np.minimum(
        (first + 1) * REGION_BYTES - start.astype(np.int64), length.astype(np.int64)
    )
    yield first, in_first
    over = length.astype(np.int64) - in_first
    crossing = over > 0
    if crossing.any():
        yield first[crossing] + 1, over[crossing]
