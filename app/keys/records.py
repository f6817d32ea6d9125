"""The key service's own log: each unwrapping, on disk before its answer, each entry chained.

An entry holds the SHA-256 of the one before, so that none can be changed or taken out unnoticed.
It never holds a key.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from host_agent.wire.errors import HoldfastError

Entry = Mapping[str, str]
NOTHING_BEFORE = "0" * 64
_LINE_BYTES_MAX = 16 * 1024


class LogDamaged(HoldfastError):
    """The log was changed, or cannot be written: no key is opened."""

    code = "key_log_damaged"


class KeyLog:
    """Appends to a file of mode 0600. One process at a time; any of its threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._before = _head(self._descriptor, path)
        self._lock = threading.Lock()
        self._size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def note(self, entries: Sequence[Entry]) -> None:
        """Write entries durably, all or none, with one flush of the disk; LogDamaged."""
        with self._lock:
            before, lines = self._before, []
            for entry in entries:
                lines.append(json.dumps({**entry, "before": before}, sort_keys=True).encode())
                before = _hash(lines[-1])
            self._write(b"".join(line + b"\n" for line in lines))
            self._before = before

    def _write(self, data: bytes) -> None:
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            # The next entry must not follow a part of this one.
            os.ftruncate(self._descriptor, self._size)
            raise LogDamaged(
                f"{self._path} cannot be written: {error.strerror}.",
                hint="Make room for it: keys are opened when it can be written down.",
                retryable=True,
            ) from None
        self._size += len(data)


def entry_of(at: datetime, act: str, **details: str) -> Entry:
    """An entry before it is chained."""
    return {"at": at.isoformat(), "act": act, **details}


def read_log(path: Path) -> list[Mapping[str, str]]:
    """All entries, oldest first; LogDamaged if one was changed or is missing."""
    entries, before = [], NOTHING_BEFORE
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            follows = entry["before"] == before
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            raise LogDamaged(f"{path} was changed at line {number} or before it.")
        entries.append(entry)
        before = _hash(line)
    return entries


def _head(descriptor: int, path: Path) -> str:
    """The hash of the last entry. What a crash left of an entry is taken away."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _LINE_BYTES_MAX, max(0, size - _LINE_BYTES_MAX))
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        if not whole and size > len(tail):
            raise LogDamaged(f"{path} ends in no entry.", hint="Put it back from a copy.")
        os.ftruncate(descriptor, size - len(tail) + len(whole))
        os.fsync(descriptor)
    lines = whole.splitlines()
    return _hash(lines[-1]) if lines else NOTHING_BEFORE


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
