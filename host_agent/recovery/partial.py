"""A raw image in the making, which a break or a power cut does not send back to the beginning.

`NAME.raw.partial` is the image, sparse; beside it `NAME.raw.progress` says which ranges are durably
in it and their checksums. At the end every range is read back; only then the image gets its name.
Calls block.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from host_agent.recovery.errors import TargetInUse, VerifyFailed, target_error
from host_agent.recovery.plan import Done
from host_agent.wire.crc import crc32c

PARTIAL, PROGRESS = ".partial", ".progress"
#: What is received is made durable, then written down, so often: so much is read again at most.
SYNC_BYTES = 64 * 1024 * 1024
_ENTRY = struct.Struct("<QII")
_ENTRY_BYTES = _ENTRY.size + 4


class PartialImage:
    """One disk. `subject` says of which moment: another one's progress is not gone on from."""

    def __init__(self, folder: Path, name: str, size: int, subject: str) -> None:
        self.name, self.size = name, size
        self.path = folder / f"{name}.raw"
        self._partial = folder / f"{name}.raw{PARTIAL}"
        self._progress = folder / f"{name}.raw{PROGRESS}"
        self._head = json.dumps({"subject": subject, "disk": name, "size": size}).encode() + b"\n"
        self._pieces: list[tuple[int, int, int]] = []
        self._unsynced: list[tuple[int, int, int]] = []
        self._unsynced_bytes = 0
        self._image = self._log = -1

    @property
    def done(self) -> Done:
        """What is there."""
        return Done((offset, length) for offset, length, _ in [*self._pieces, *self._unsynced])

    def open(self) -> None:
        """Go on with what is there, or begin; TargetInUse, TargetUnusable."""
        if self.path.exists():
            raise TargetInUse(
                f"{self.path} is there already.", hint="Move it away, or name another folder."
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._log = os.open(self._progress, flags, 0o600)
            self._take_progress()
            if not self._pieces:
                self._partial.unlink(missing_ok=True)
            self._image = os.open(self._partial, flags, 0o600)
            if os.fstat(self._image).st_size != self.size:
                os.ftruncate(self._image, self.size)
            os.fsync(self._log)
        except OSError as error:
            raise target_error(self._partial, "made", error) from error

    def _take_progress(self) -> None:
        kept = os.pread(self._log, os.fstat(self._log).st_size, 0)
        if kept and kept.startswith(b"{") and not kept.startswith(self._head):
            raise TargetInUse(
                f"{self._progress} is of another moment or another disk.",
                hint="Remove it with its image to begin anew, or name another folder.",
            )
        if kept.startswith(self._head) and self._partial.exists():
            self._pieces = list(_entries(kept[len(self._head) :], self.size))
        whole = len(self._head) + len(self._pieces) * _ENTRY_BYTES
        os.ftruncate(self._log, whole if self._pieces else 0)
        if not self._pieces:
            os.pwrite(self._log, self._head, 0)

    def write(self, offset: int, data: bytes, crc: int) -> None:
        """A range as it was received; TargetUnusable."""
        try:
            view, at = memoryview(data), offset
            while view:
                written = os.pwrite(self._image, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise target_error(self._partial, "written", error) from error
        self._unsynced.append((offset, len(data), crc))
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """What was written is durable, and known to be; TargetUnusable."""
        try:
            os.fdatasync(self._image)
            at = len(self._head) + len(self._pieces) * _ENTRY_BYTES
            data = b"".join(_packed(entry) for entry in self._unsynced)
            if os.pwrite(self._log, data, at) == len(data):
                os.fdatasync(self._log)
        except OSError as error:
            raise target_error(self._partial, "written", error) from error
        self._pieces += self._unsynced
        self._unsynced, self._unsynced_bytes = [], 0

    def verify(self, advance: Callable[[int], None]) -> None:
        """Read back all that was received; VerifyFailed, TargetUnusable."""
        try:
            if os.fstat(self._image).st_size != self.size:
                raise self._differs(self.size)
            os.posix_fadvise(self._image, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset, length, crc in self._pieces:
                if crc32c(os.pread(self._image, length, offset)) != crc:
                    raise self._differs(offset)
                advance(length)
        except OSError as error:
            raise target_error(self._partial, "read back", error) from error

    def _differs(self, offset: int) -> VerifyFailed:
        return VerifyFailed(
            f"{self._partial} does not hold at byte {offset} what was received.",
            hint="Do not use it. Check that disk, remove the image, or name another folder.",
        )

    def discard(self) -> None:
        """Nothing of it is gone on from."""
        self.close()
        self._progress.unlink(missing_ok=True)

    def publish(self) -> None:
        """The verified image gets its name, durably. Repeats change nothing. TargetUnusable."""
        try:
            if self._partial.exists():
                self._partial.rename(self.path)
                _sync_folder(self.path.parent)
            self._progress.unlink(missing_ok=True)
        except OSError as error:
            raise target_error(self.path, "named", error) from error

    def close(self) -> None:
        """Idempotent. What was not synced is received again."""
        for descriptor in (self._image, self._log):
            if descriptor >= 0:
                os.close(descriptor)
        self._image = self._log = -1


def _packed(entry: tuple[int, int, int]) -> bytes:
    data = _ENTRY.pack(*entry)
    return data + crc32c(data).to_bytes(4, "little")


def _entries(data: bytes, size: int) -> list[tuple[int, int, int]]:
    """Whole entries up to the first that a crash spoilt."""
    found = []
    for at in range(0, len(data) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        packed = data[at : at + _ENTRY.size]
        offset, length, crc = _ENTRY.unpack(packed)
        if data[at : at + _ENTRY_BYTES] != _packed((offset, length, crc)) or offset + length > size:
            break
        found.append((offset, length, crc))
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
