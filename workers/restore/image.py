"""A raw image file in the making: sparse, written once, unusable by its name until it is
verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from host_agent.wire.crc import crc32c_extend
from host_agent.wire.limits import MIB
from workers.restore.errors import VerifyFailed, target_error
from workers.restore.imagecrc import ImageCrc, after_zeroes

_READ_BYTES = 4 * MIB
_VECTOR_MAX = 1000
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
        self._fd = -1

    def create(self) -> None:
        """Make the file, all zeroes and sparse. TargetFull, TargetFailed."""
        try:
            self._partial.unlink(missing_ok=True)
            self._fd = os.open(
                self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            os.ftruncate(self._fd, self.size)
        except OSError as error:
            raise target_error(self._partial, "made", error) from error

    def write(self, offset: int, buffers: Sequence[memoryview], length: int) -> None:
        """Adjoining buffers of `length` bytes together, from `offset` bytes on."""
        try:
            if len(buffers) <= _VECTOR_MAX:
                done = os.pwritev(self._fd, buffers, offset)
                if done == length:
                    self.bytes_written += length
                    return
            # More than the system takes at once, or it took a part only.
            self._write_all(offset, memoryview(b"".join(buffers)))
        except OSError as error:
            raise target_error(self._partial, "written", error) from error
        self.bytes_written += length

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done

    def sync(self) -> None:
        """Make what was written durable, and let the next read come from the disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise target_error(self._partial, "written", error) from error
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def verify(self, advance: Callable[[int], None]) -> None:
        """Read the file back: its CRC must be that of the pieces. VerifyFailed."""
        crc, digest, at = 0, blake3(max_threads=blake3.AUTO), 0
        if os.fstat(self._fd).st_size != self.size:
            raise self._differs()
        zeroes = bytes(_READ_BYTES)
        while at < self.size:
            start, end = self._next_data(at)
            if start > at:
                crc = after_zeroes(crc, start - at)
                for done in range(at, start, _READ_BYTES):
                    digest.update(memoryview(zeroes)[: min(_READ_BYTES, start - done)])
                advance(start - at)
            while start < end:
                data = self._read(start, min(_READ_BYTES, end - start))
                crc = crc32c_extend(crc, data)
                digest.update(data)
                start += len(data)
                advance(len(data))
            at = end
        if crc != self.crc.value():
            raise self._differs()
        self.digest = digest.hexdigest()

    def _next_data(self, at: int) -> tuple[int, int]:
        """The next range that is not a hole; (size, size) if there is none."""
        try:
            start = os.lseek(self._fd, at, os.SEEK_DATA)
            return start, os.lseek(self._fd, start, os.SEEK_HOLE)
        except OSError:
            # ENXIO: nothing but a hole up to the end.
            return self.size, self.size

    def _read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise target_error(self._partial, "read back", error) from error
        if not data:
            raise self._differs()
        return data

    def _differs(self) -> VerifyFailed:
        return VerifyFailed(
            f"{self._partial} does not hold what was written to it.",
            hint="Do not use it. Check that disk and its file system, or name another folder.",
        )

    def publish(self) -> None:
        """Give the verified file its name, durably."""
        try:
            self._partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise target_error(self.path, "named", error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
