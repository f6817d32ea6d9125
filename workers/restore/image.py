"""A raw image file in the making: sparse, written once, unusable by its name until it is
verified."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from host_agent.wire.failpoints import failpoint
from host_agent.wire.limits import FRAME_PLAIN_BYTES_MAX, KIB, MIB
from workers.restore.errors import VerifyFailed, target_error
from workers.restore.imagecrc import ImageCrc
from workers.restore.readback import Bytes, ReadBack, open_direct

_READ_BYTES = 4 * MIB
_ZEROES = bytes(_READ_BYTES)
_VECTOR_MAX = 1000

#: From so many bytes on they go past the page cache: pages of it cost more processor time than
#: anything else of an export does, and who reads back would wait until they are written out.
_DIRECT_BYTES_MIN = 256 * KIB
#: What a direct write begins and ends at, at least.
_PAGE_BYTES = 4096

#: Regions that are read back at once: enough to keep a disk busy.
READERS = 2
PARTIAL = ".partial"


class RawImage:
    """`NAME.raw.partial` while it is written; `NAME.raw` once it was read back and is right."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.path = folder / f"{name}.raw"
        self.crc = ImageCrc(size)
        self.bytes_written = 0
        self.digest = ""
        self._partial = folder / f"{name}.raw{PARTIAL}"
        self._fd = self._direct = -1
        self._buffers = threading.local()
        self._reading: ReadBack | None = None

    def create(self) -> None:
        """Make the file, all zeroes and sparse. TargetFull, TargetFailed."""
        try:
            self._partial.unlink(missing_ok=True)
            self._fd = os.open(
                self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            os.ftruncate(self._fd, self.size)
            self._direct = open_direct(self._partial, os.O_RDWR)
        except OSError as error:
            raise target_error(self._partial, "made", error) from error

    def write(self, offset: int, buffers: Sequence[memoryview], length: int) -> None:
        """Adjoining buffers of `length` bytes together, from `offset` bytes on. For several
        threads."""
        try:
            if self._direct >= 0 and _DIRECT_BYTES_MIN <= length <= FRAME_PLAIN_BYTES_MAX:
                self._write_directly(offset, buffers)
                return
            if len(buffers) <= _VECTOR_MAX:
                done = os.pwritev(self._fd, buffers, offset)
                if done == length:
                    return
            # More than the system takes at once, or it took a part only.
            self._write_all(offset, memoryview(b"".join(buffers)))
        except OSError as error:
            raise target_error(self._partial, "written", error) from error

    def _write_directly(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Whole pages of the image past the page cache, what is left of pages at both ends not."""
        own = self._own_buffer()
        start = at = offset % _PAGE_BYTES
        for buffer in buffers:
            own[at : at + len(buffer)] = buffer
            at += len(buffer)
        # Pages of the image are pages of the buffer.
        low, high = -(-start // _PAGE_BYTES) * _PAGE_BYTES, at - at % _PAGE_BYTES
        try:
            done = os.pwritev(self._direct, [own[low:high]], offset + low - start)
        except OSError as error:
            # Some file systems take fewer places directly than they let be read.
            if error.errno != errno.EINVAL:
                raise
            done = 0
        self._write_all(offset, own[start:low])
        self._write_all(offset + low - start + done, own[low + done : at])

    def _own_buffer(self) -> memoryview:
        """This thread's buffer, which begins with a page of memory."""
        if not hasattr(self._buffers, "one"):
            size = FRAME_PLAIN_BYTES_MAX + 2 * _PAGE_BYTES
            self._buffers.one = memoryview(mmap.mmap(-1, size))
        own: memoryview = self._buffers.one
        return own

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done

    def expect(self, start: Bytes, length: Bytes) -> None:
        """Pieces that will be written. TargetFailed."""
        self._read_back().expect(start, length)

    def take(self, start: Bytes, length: Bytes) -> list[int]:
        """Pieces that were written: the regions that are whole by that, to be `check`ed."""
        return self._read_back().take(start, length)

    def check(self, region: int) -> int:
        """Read a region back; its bytes. TargetFailed, VerifyFailed. For several threads."""
        try:
            return self._read_back().read(region)
        except OSError as error:
            raise target_error(self._partial, "read back", error) from error

    def _read_back(self) -> ReadBack:
        if self._reading is None:
            self._reading = ReadBack(self._partial, self._fd, self.size)
        return self._reading

    def sync(self) -> None:
        """Make what was written durable."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise target_error(self._partial, "written", error) from error

    def verify(self, advance: Callable[[int], None], *, digest: bool = False) -> None:
        """Read back what was not read yet: the file's CRC must be that of the pieces. VerifyFailed.

        `digest` also takes the BLAKE3 of the whole file: for a terabyte of holes some minutes.
        """
        reading = self._read_back()
        try:
            if os.fstat(self._fd).st_size != self.size:
                raise self._differs()
            with ThreadPoolExecutor(READERS, "holdfast-verify") as pool:
                left = self.size
                for length in pool.map(self.check, reading.rest()):
                    advance(length)
                    left -= length
            # Holes, and what was read while the rest was written.
            advance(left)
            if reading.value() != self.crc.value():
                raise self._differs()
            if digest:
                self.digest = self._digest()
        except OSError as error:
            raise target_error(self._partial, "read back", error) from error

    def _digest(self) -> str:
        hasher, at = blake3(max_threads=blake3.AUTO), 0
        while at < self.size:
            data = _ZEROES[: self._hole_at(at)] or os.pread(
                self._fd, min(_READ_BYTES, self.size - at), at
            )
            if not data:
                raise self._differs()
            hasher.update(data)
            at += len(data)
        return hasher.hexdigest()

    def _hole_at(self, at: int) -> int:
        """Bytes of the hole at `at`."""
        try:
            start = os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            start = self.size
        return min(start, self.size) - at

    def _differs(self) -> VerifyFailed:
        return VerifyFailed(
            f"{self._partial} does not hold what was written to it.",
            hint="Do not use it. Check that disk and its file system, or name another folder.",
        )

    def publish(self) -> None:
        """Give the verified file its name, durably."""
        try:
            self._partial.replace(self.path)
            failpoint("export_after_named_before_synced")
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise target_error(self.path, "named", error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1
