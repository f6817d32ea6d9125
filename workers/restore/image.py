"""A raw image file in the making: sparse, written once, unusable by its name until it is
verified."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from host_agent.wire.crc import crc32c_extend
from host_agent.wire.failpoints import failpoint
from host_agent.wire.limits import MIB
from workers.restore.errors import VerifyFailed, target_error
from workers.restore.imagecrc import ImageCrc, after_zeroes

_READ_BYTES = 4 * MIB
_ZEROES = bytes(_READ_BYTES)
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
                    return
            # More than the system takes at once, or it took a part only.
            self._write_all(offset, memoryview(b"".join(buffers)))
        except OSError as error:
            raise target_error(self._partial, "written", error) from error

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

    def verify(self, advance: Callable[[int], None], *, digest: bool = True) -> None:
        """Read the file back: its CRC must be that of the pieces. VerifyFailed.

        `digest` also takes the BLAKE3 of the whole file: for a terabyte of holes some minutes.
        """
        if os.fstat(self._fd).st_size != self.size:
            raise self._differs()
        crc = 0
        hasher = blake3(max_threads=blake3.AUTO) if digest else None
        for length, data in self._stretches():
            if data is None:
                crc = after_zeroes(crc, length)
                if hasher is not None:
                    for done in range(0, length, _READ_BYTES):
                        hasher.update(memoryview(_ZEROES)[: min(_READ_BYTES, length - done)])
            else:
                crc = crc32c_extend(crc, data)
                if hasher is not None:
                    hasher.update(data)
            advance(length)
        if crc != self.crc.value():
            raise self._differs()
        self.digest = hasher.hexdigest() if hasher else ""

    def _stretches(self) -> Iterator[tuple[int, bytes | None]]:
        """The file in order: lengths of holes, and data, of which one stretch is read ahead."""

        def stretch(at: int) -> tuple[int, bytes | None]:
            hole = self._hole_at(at)
            if hole:
                return hole, None
            data = self._read(at, min(_READ_BYTES, self.size - at))
            return len(data), data

        with ThreadPoolExecutor(1, "holdfast-verify") as pool:
            at = 0
            ahead = pool.submit(stretch, 0) if self.size else None
            while ahead is not None:
                length, data = ahead.result()
                at += length
                ahead = pool.submit(stretch, at) if at < self.size else None
                yield length, data

    def _hole_at(self, at: int) -> int:
        """Bytes of the hole at `at` if it is worth jumping over, else 0: short ones are read."""
        try:
            start = os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return 0
            start = self.size
        length = min(start, self.size) - at
        return length if length >= _READ_BYTES or at + length == self.size else 0

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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
