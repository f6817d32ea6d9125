"""The map of a point in time as a file: made once, verified when used, reused by later restores.

Blocks of pieces in the order of their addresses, a directory of them at the end. Every block and
the directory carry a BLAKE3 keyed from the stream's data key: a map that another process changed,
or that belongs to another point, is not used. What no piece covers reads as zeroes.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from workers.journal.errors import JournalError, SpoolFull

MAGIC = b"HFMAP\0\0\x01"
_TAIL = struct.Struct("<Q32s8s")
_DIRECTORY_BYTES_MAX = 1 << 30

#: Blocks that are kept, of 2.5 MiB each: guests' reads are seldom far from each other.
_BLOCKS_KEPT = 8

#: A piece of a disk: bytes `start` .. `start + length` are at `at` of the payload of frame `frame`.
PIECE = np.dtype([("start", "<u8"), ("length", "<u4"), ("frame", "<u4"), ("at", "<u4")])
Pieces = NDArray[np.void]


class MapUnusable(JournalError):
    """A saved map that is damaged, changed, or of another point. It is made anew."""

    code = "map_unusable"

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="Remove the folder of saved maps and try again.")


class Block(msgspec.Struct, frozen=True):
    """A run of pieces in the file. `first` .. `end` are bytes of the disk."""

    first: int
    end: int
    position: int
    count: int
    hash: str


class MapDisk(msgspec.Struct, frozen=True):
    """A disk at that point. `size` and `data_bytes` in bytes."""

    name: str
    size: int
    data_bytes: int
    blocks: list[Block]


class _Directory(msgspec.Struct, frozen=True):
    subject: str
    disks: list[MapDisk]


@dataclass(frozen=True)
class MapSeal:
    """What a map is bound to: `subject` says which point, `key` is 32 bytes."""

    subject: str
    key: bytes

    def hash(self, data: bytes | memoryview) -> bytes:
        """Keyed BLAKE3."""
        return blake3(data, key=self.key).digest()


class PointMap:
    """A map, opened. Several threads may look things up at once."""

    def __init__(self, file: IO[bytes], seal: MapSeal) -> None:
        self._file = file
        self._seal = seal
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Pieces] = OrderedDict()
        try:
            self.disks = self._read_directory()
        except (OSError, ValueError, struct.error, msgspec.DecodeError) as error:
            raise MapUnusable(f"The saved map cannot be read: {error}.") from None

    def _read_directory(self) -> list[MapDisk]:
        self._file.seek(-_TAIL.size, os.SEEK_END)
        length, digest, magic = _TAIL.unpack(self._file.read(_TAIL.size))
        if magic != MAGIC or length > _DIRECTORY_BYTES_MAX:
            raise MapUnusable("The saved map is not complete.")
        self._file.seek(-_TAIL.size - length, os.SEEK_END)
        data = self._file.read(length)
        if self._seal.hash(data) != digest:
            raise MapUnusable("The saved map does not match its hash.")
        directory = msgspec.json.decode(data, type=_Directory)
        if directory.subject != self._seal.subject:
            raise MapUnusable("The saved map is that of another point in time.")
        return directory.disks

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def disk(self, name: str) -> MapDisk:
        """A disk by its name."""
        return next(disk for disk in self.disks if disk.name == name)

    def pieces(self, block: Block) -> Pieces:
        """A block's pieces in the order of their addresses; MapUnusable."""
        with self._lock:
            if block.position in self._kept:
                self._kept.move_to_end(block.position)
                return self._kept[block.position]
        # Read, not mapped: a month's map would stay in memory, page by page.
        try:
            data = os.pread(self._file.fileno(), block.count * PIECE.itemsize, block.position)
        except OSError as error:
            raise MapUnusable(f"The map cannot be read: {error.strerror}.") from error
        if self._seal.hash(data).hex() != block.hash:
            raise MapUnusable("A block of the saved map does not match its hash.")
        pieces = np.frombuffer(data, PIECE)
        with self._lock:
            self._kept[block.position] = pieces
            while len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        return pieces

    def blocks(self) -> Iterator[tuple[int, Pieces]]:
        """All blocks of all disks: (number of the disk in `disks`, pieces)."""
        for number, disk in enumerate(self.disks):
            for block in disk.blocks:
                yield number, self.pieces(block)

    def find(self, disk: MapDisk, offset: int, length: int) -> Pieces:
        """The pieces of a range, cut to it."""
        end = offset + length
        found = []
        for block in disk.blocks:
            if block.first < end and block.end > offset:
                pieces = self.pieces(block)
                first = int(np.searchsorted(pieces["start"], np.uint64(offset), "right"))
                last = int(np.searchsorted(pieces["start"], np.uint64(end), "left"))
                found.append(cut_pieces(pieces[max(0, first - 1) : last], offset, end))
        return np.concatenate(found) if found else np.empty(0, PIECE)


def cut_pieces(pieces: Pieces, offset: int, end: int) -> Pieces:
    """Pieces clipped to a range."""
    start = pieces["start"].astype(np.int64)
    stop = start + pieces["length"]
    cut_start = np.maximum(start, offset)
    cut_stop = np.minimum(stop, end)
    keep = cut_start < cut_stop
    out: Pieces = pieces[keep].copy()
    out["start"] = cut_start[keep]
    out["length"] = (cut_stop - cut_start)[keep]
    out["at"] += (cut_start - start)[keep].astype(np.uint32)
    return out


class MapWriter:
    """Writes a map: blocks in the order of disks and addresses, then `finish`."""

    def __init__(self, disks: list[tuple[str, int]], seal: MapSeal, directory: Path | None) -> None:
        """`disks` are names and sizes in bytes; `directory` holds the file (None: the system's)."""
        self._seal = seal
        self._names = disks
        self._blocks: list[list[Block]] = [[] for _ in disks]
        self._data_bytes = [0] * len(disks)
        try:
            # Its life ends with the map's.
            self._file = tempfile.NamedTemporaryFile(dir=directory, prefix=".holdfast-map-")  # noqa: SIM115
            self._file.write(MAGIC)
        except OSError as error:
            raise _no_room(error) from error
        self._position = len(MAGIC)

    def append(self, disk: int, pieces: Pieces) -> None:
        """The next pieces of a disk, after all earlier ones."""
        if not len(pieces):
            return
        data = pieces.tobytes()
        last = pieces[-1]
        block = Block(
            int(pieces[0]["start"]),
            int(last["start"]) + int(last["length"]),
            self._position,
            len(pieces),
            self._seal.hash(data).hex(),
        )
        self._blocks[disk].append(block)
        self._data_bytes[disk] += int(pieces["length"].sum(dtype=np.uint64))
        self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _no_room(error) from error
        self._position += len(data)

    def finish(self, path: Path | None = None) -> PointMap:
        """The map, opened; kept as `path` if given, else gone when it is closed."""
        disks = [
            MapDisk(name, size, self._data_bytes[number], self._blocks[number])
            for number, (name, size) in enumerate(self._names)
        ]
        data = msgspec.json.encode(_Directory(self._seal.subject, disks))
        self._write(data + _TAIL.pack(len(data), self._seal.hash(data), MAGIC))
        try:
            self._file.flush()
            if path is not None:
                os.fsync(self._file.fileno())
                path.unlink(missing_ok=True)
                os.link(self._file.name, path)
        except OSError as error:
            raise _no_room(error) from error
        return PointMap(self._file, self._seal)


def load_map(path: Path, seal: MapSeal) -> PointMap | None:
    """A saved map; None if there is none that may be used."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    try:
        return PointMap(file, seal)
    except MapUnusable:
        file.close()
        return None


def _no_room(error: OSError) -> SpoolFull:
    return SpoolFull(
        f"The map of the point in time cannot be written: {error.strerror}.",
        hint="Make room, or name another folder for it.",
        retryable=True,
    )
