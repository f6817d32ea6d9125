"""A raw image file in the making: sparse, written once, unusable by its name until it is
verified."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from host_agent.wire.failpoints import failpoint
from host_agent.wire.limits import MIB
from workers.restore.errors import VerifyFailed, target_error
from workers.restore.imagecrc import ImageCrc
from workers.restore.readback import Bytes, ReadBack

_READ_BYTES = 4 * MIB
_ZEROES = bytes(_READ_BYTES)
_VECTOR_MAX = 1000

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
        self._fd = -1
        self._reading: ReadBack | None = None

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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
