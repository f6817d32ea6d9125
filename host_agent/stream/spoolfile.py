"""The spool's file: sealed frames that wait on the host's own disk while the line is down.

A preallocated circular file, written with ordinary writes and made durable before anything relies
on it. Each entry carries the spool's random name, a number without gaps, and checksums; who opens
the file reads on from where the newest superblock points until the first entry that is not whole.
What an fsync once refused is never trusted again: the file takes nothing more until it is emptied
by a new run.

    0, 4096   superblocks, written by turns
    8192 ..   entries, each at a multiple of 4096
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from host_agent.stream.errors import SpoolFailed, SpoolFull
from host_agent.wire.crc import crc32c

_PAGE = 4096
_AREA_AT = 2 * _PAGE
_SUPER = struct.Struct("<8s16s16sQQQ")
_SUPER_MAGIC = b"HFSPOOL\x01"
_ENTRY = struct.Struct("<4sI16sQIIQQQ32s")
_ENTRY_MAGIC = b"HFSE"
_HEAD_BYTES = _ENTRY.size + 4
#: A smaller file holds hardly a frame.
SPOOL_BYTES_MIN = 32 << 20
_BODY_BYTES_MAX = 16 << 20

KIND_SKIP, KIND_BASE, KIND_FRAME = 0, 1, 2


@dataclass(frozen=True)
class Entry:
    """One entry: positions `first` to `last`, and the record hash's anchor before `first`."""

    kind: int
    first: int
    last: int
    anchor: int
    anchor_hash: bytes
    number: int = 0
    at: int = 0
    length: int = 0
    crc: int = 0

    @property
    def size(self) -> int:
        """Bytes of the area."""
        return -(-(_HEAD_BYTES + self.length) // _PAGE) * _PAGE


class SpoolFile:
    """The open file. Used by one thread at a time; `entries` may be looked at by others."""

    def __init__(
        self, path: Path, size: int, generation: bytes, random: Callable[[int], bytes]
    ) -> None:
        """Open or make it; what is of another generation is dropped. SpoolFailed."""
        self.path = path
        self.generation = generation
        self.is_tainted = False
        self.entries: deque[Entry] = deque()
        self._random = random
        self._turn = self._head = self._tail = 0
        self._number = 1
        self._name = bytes(16)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
            self._area = self._allocate(size)
            if not self._load():
                self._reset()
        except OSError as error:
            raise self._failed("opened", error) from None

    def _allocate(self, size: int) -> int:
        size = max(size, SPOOL_BYTES_MIN) // _PAGE * _PAGE
        if os.fstat(self._fd).st_size != size:
            # Its places are counted by its size: what another size held cannot be found.
            os.ftruncate(self._fd, 0)
            os.posix_fallocate(self._fd, 0, size)
            os.fsync(self._fd)
        return size - _AREA_AT

    def close(self) -> None:
        """Close the descriptor; what it holds stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def used_bytes(self) -> int:
        """Bytes of the area that are taken."""
        return self._head - self._tail

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the area."""
        return self._area

    # --- opening

    def _load(self) -> bool:
        found = [self._superblock(turn) for turn in (0, 1)]
        whole = [block for block in found if block is not None]
        if not whole:
            return False
        self._turn, self._name, generation, self._tail, self._number = max(whole)
        self._head = self._tail
        if generation != self.generation:
            return False
        while (entry := self._entry_at(self._head)) is not None:
            if entry.kind != KIND_SKIP:
                if self.entries and entry.first != self.entries[-1].last + 1:
                    break
                self.entries.append(entry)
            self._head += entry.size
            self._number += 1
        return True

    def _superblock(self, turn: int) -> tuple[int, bytes, bytes, int, int] | None:
        raw = os.pread(self._fd, _SUPER.size + 4, turn * _PAGE)
        if len(raw) < _SUPER.size + 4 or crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            return None
        magic, name, generation, counter, tail, number = _SUPER.unpack(raw[:-4])
        return (counter, name, generation, tail, number) if magic == _SUPER_MAGIC else None

    def _entry_at(self, position: int) -> Entry | None:
        """The entry there if it is whole and the next one."""
        at = position % self._area
        raw = os.pread(self._fd, _HEAD_BYTES, _AREA_AT + at)
        if len(raw) < _HEAD_BYTES or crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            return None
        magic, kind, name, number, length, crc, first, last, anchor, digest = _ENTRY.unpack(
            raw[:-4]
        )
        is_next = (magic, name, number) == (_ENTRY_MAGIC, self._name, self._number)
        entry = Entry(kind, first, last, anchor, digest, number, position, length, crc)
        fits = at + entry.size <= self._area and self._head - self._tail + entry.size <= self._area
        if not is_next or not fits:
            return None
        return entry if kind == KIND_SKIP or crc32c(self._body(entry)) == crc else None

    def _body(self, entry: Entry) -> bytes:
        return os.pread(self._fd, entry.length, _AREA_AT + entry.at % self._area + _HEAD_BYTES)

    # --- writing

    def _reset(self) -> None:
        self.entries.clear()
        self._head = self._tail = 0
        self._number = 1
        # Under a new name nothing that lies there counts.
        self._name = self._random(16)
        self._save_tail()

    def _save_tail(self) -> None:
        self._turn += 1
        raw = _SUPER.pack(
            _SUPER_MAGIC, self._name, self.generation, self._turn, self._tail, self._next_number()
        )
        self._write(raw + crc32c(raw).to_bytes(4, "little"), self._turn % 2 * _PAGE)
        os.fdatasync(self._fd)

    def _next_number(self) -> int:
        """The number of the entry at the tail."""
        return self.entries[0].number if self.entries else self._number

    def _write(self, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def append(self, entries: list[tuple[Entry, bytes]]) -> None:
        """Write entries with their bodies and make them durable; SpoolFull, SpoolFailed."""
        if self.is_tainted:
            raise SpoolFailed("The spool failed before and takes nothing more in this run.")
        kept, head, number = list(self.entries), self._head, self._number
        try:
            for entry, body in entries:
                self._append(entry, body)
            os.fdatasync(self._fd)
        except OSError as error:
            self.is_tainted = True
            self._undo(kept, head, number)
            raise self._failed("written", error) from None
        except SpoolFull:
            self._undo(kept, head, number)
            raise

    def _undo(self, kept: list[Entry], head: int, number: int) -> None:
        self.entries, self._head, self._number = deque(kept), head, number

    def _append(self, entry: Entry, body: bytes) -> None:
        assert len(body) <= _BODY_BYTES_MAX
        placed = self._place(entry, len(body), crc32c(body))
        rest = self._area - self._head % self._area
        if placed.size > rest:
            self._put(self._place(Entry(KIND_SKIP, 0, 0, 0, bytes(32)), rest - _HEAD_BYTES, 0), b"")
            placed = self._place(entry, len(body), crc32c(body))
        self._put(placed, body)
        self.entries.append(placed)

    def _place(self, entry: Entry, length: int, crc: int) -> Entry:
        return Entry(
            entry.kind, entry.first, entry.last, entry.anchor, entry.anchor_hash,
            self._number, self._head, length, crc,
        )  # fmt: skip

    def _put(self, entry: Entry, body: bytes) -> None:
        if self.used_bytes + entry.size > self._area:
            raise SpoolFull(f"The spool {self.path} is full.")
        head = _ENTRY.pack(
            _ENTRY_MAGIC, entry.kind, self._name, entry.number, entry.length, entry.crc,
            entry.first, entry.last, entry.anchor, entry.anchor_hash,
        )  # fmt: skip
        whole = head + crc32c(head).to_bytes(4, "little") + body
        self._write(whole, _AREA_AT + entry.at % self._area)
        self._head += entry.size
        self._number += 1

    # --- reading and giving back

    def read(self, entry: Entry) -> bytes:
        """An entry's body, checked; SpoolFailed."""
        try:
            body = self._body(entry)
        except OSError as error:
            raise self._failed("read", error) from None
        if crc32c(body) != entry.crc:
            raise SpoolFailed(f"An entry of the spool {self.path} is damaged.")
        return body

    def read_head(self, entry: Entry, length: int) -> bytes:
        """The first bytes of an entry's body, unchecked; SpoolFailed."""
        try:
            return os.pread(self._fd, length, _AREA_AT + entry.at % self._area + _HEAD_BYTES)
        except OSError as error:
            raise self._failed("read", error) from None

    def drop(self, count: int) -> None:
        """Give the first `count` entries back. Their room is used again once that is durable."""
        if not count:
            return
        try:
            if count == len(self.entries):
                self._reset()
                return
            for _ in range(count):
                self.entries.popleft()
            self._tail = self.entries[0].at
            self._save_tail()
        except OSError as error:
            self.is_tainted = True
            raise self._failed("written", error) from None

    def _failed(self, what: str, error: OSError) -> SpoolFailed:
        return SpoolFailed(
            f"The spool {self.path} cannot be {what}: {error.strerror or error}.",
            hint="Look at that disk; until the agent starts again nothing more is spooled.",
        )
