"""From a map to a layer's objects: data put into the order of its addresses, in bounded memory.

The map says which frame holds each range. Every frame is fetched once, in the order of the chain,
and its data dealt out to the parts of the layer in a temporary file, sealed under a key that only
this process has; then part after part is put together. Nothing is held but one batch or one part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from host_agent.wire.crc import crc32c
from host_agent.wire.limits import MIB, SECTOR_BYTES
from host_agent.wire.record import Op
from workers.journal.columns import Columns
from workers.journal.journal import Journal
from workers.journal.layerfile import (
    PART_BYTES,
    PIECE_BYTES,
    Built,
    IndexContent,
    Sealer,
    build_data,
    parse_head,
)
from workers.journal.runs import FrameInfo
from workers.journal.spool import ColumnSpool, Runs, no_room

#: Opened data that is dealt out together: with its copy and what is sealed about 150 MiB.
BATCH_BYTES = 48 * MIB

#: Entries of one index of a layer, about: some 10 MiB.
INDEX_ENTRIES = 1024 * 1024

#: A run of zeroes is cut into entries of at most this.
_ZERO_BYTES_MAX = 1 << 31

_BUCKETS_MAX = 4096
_FRAMES_EACH = 64
_PIECE_KINDS = {"where": "<u8", "length": "<u4", "frame": "<u4", "at": "<u4"}
_ENTRY_KINDS = {"offset": "<u8", "length": "<u4", "disk": "<u2", "op": "u1"}

Fetch = Callable[[Journal, Iterator[int]], Iterator[tuple[FrameInfo, bytes]]]
"""Frames by ascending numbers, with their data verified."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Visible:
    """What an interval left of some addresses, ascending and disjoint. `disk`: its number; `frame`
    and `at` mean nothing where `is_data` is not."""

    disk: NDArray[Any]
    start: NDArray[Any]
    length: NDArray[Any]
    is_data: NDArray[np.bool_]
    frame: NDArray[Any]
    at: NDArray[Any]

    def only(self, keep: NDArray[np.bool_]) -> Visible:
        """Some of it."""
        return Visible(self.disk[keep], self.start[keep], self.length[keep], self.is_data[keep],
                       self.frame[keep], self.at[keep])  # fmt: skip


@dataclass(frozen=True)
class MadePart:
    """A data object, and the lengths and checksums of its pieces."""

    built: Built
    plain: list[int]
    crc: list[int]

    @property
    def head(self) -> bytes:
        """Its fixed fields."""
        return parse_head(self.built.data).fixed


@dataclass
class MadeParts:
    """All data objects of a layer, without their bytes."""

    heads: list[bytes] = field(default_factory=list)
    sealed: list[list[int]] = field(default_factory=list)
    plain: list[list[int]] = field(default_factory=list)
    crc: list[list[int]] = field(default_factory=list)

    def add(self, part: MadePart) -> None:
        """The next one."""
        self.heads.append(part.head)
        self.sealed.append(part.built.sealed)
        self.plain.append(part.plain)
        self.crc.append(part.crc)

    def index(self, entries: Columns, first: int, end: int) -> IndexContent:
        """The index of some parts and their entries."""
        pieces = {
            name: np.array([v for values in column[first:end] for v in values], np.uint32)
            for name, column in (("sealed", self.sealed), ("plain", self.plain), ("crc", self.crc))
        }
        counts = [len(values) for values in self.sealed[first:end]]
        return IndexContent(entries, pieces, list(zip(counts, self.heads[first:end], strict=True)))


@dataclass(frozen=True)
class ContentTools:
    """`fetch` opens frames; `secret` is a key for temporary files, 32 random bytes; `advance` hears
    the bytes of data."""

    fetch: Fetch
    secret: bytes
    directory: Path | None = None
    advance: Callable[[int], None] = lambda _: None


class LayerContent:
    """A layer in the making: `take` all that is visible, `deal`, then `parts` and `indexes`."""

    def __init__(self, journal: Journal, tools: ContentTools) -> None:
        self._journal = journal
        self._tools = tools
        self._each = max(_FRAMES_EACH, -(-journal.frames // _BUCKETS_MAX))
        buckets = max(1, -(-journal.frames // self._each))
        self._pieces = Runs(_PIECE_KINDS, buckets, tools.directory)
        self._entries = ColumnSpool(_ENTRY_KINDS, tools.directory)
        self._dealt: DataSpool | None = None
        self.data_bytes = 0

    def __enter__(self) -> LayerContent:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.close()
        self._entries.close()
        if self._dealt is not None:
            self._dealt.close()

    def take(self, found: Visible) -> None:
        """The next addresses."""
        if not len(found.start):
            return
        found = _split_zeroes(found)
        length = np.where(found.is_data, found.length, 0).astype(np.uint64)
        where = np.cumsum(length, dtype=np.uint64) - length + np.uint64(self.data_bytes)
        self.data_bytes += int(length.sum(dtype=np.uint64))
        found, where = _split_at_pieces(found, where)
        data = found.is_data
        self._pieces.append(
            found.frame[data] // np.uint32(self._each),
            {"where": where[data], "length": found.length[data], "frame": found.frame[data],
             "at": found.at[data]},
        )  # fmt: skip
        self._entries.append(_merged(found, where))

    def deal(self) -> None:
        """Fetch every frame and deal its data out."""
        advance = self._tools.advance
        parts = -(-self.data_bytes // PART_BYTES)
        self._dealt = DataSpool(parts, self._tools)
        wanted: list[Columns] = []
        batch = _Batch()
        for frame, plain in self._tools.fetch(self._journal, self._numbers(wanted)):
            while int(wanted[0]["frame"][-1]) < frame.number:
                wanted.pop(0)
            columns = wanted[0]
            ends = np.array([frame.number, frame.number + 1], columns["frame"].dtype)
            first, last = np.searchsorted(columns["frame"], ends).tolist()
            batch.add(plain, {name: column[first:last] for name, column in columns.items()})
            if batch.length >= BATCH_BYTES:
                advance(self._dealt.deal(*batch.gathered()))
                batch = _Batch()
        if batch.length:
            advance(self._dealt.deal(*batch.gathered()))

    def _numbers(self, wanted: list[Columns]) -> Iterator[int]:
        """Frames that hold anything, ascending; their pieces are in `wanted` before they are
        named."""
        for number in range(self._pieces.buckets):
            columns = self._pieces.bucket(number)
            order = np.lexsort((columns["where"], columns["frame"]))
            if len(order):
                wanted.append({name: column[order] for name, column in columns.items()})
                yield from np.unique(wanted[-1]["frame"]).tolist()

    def parts(self, sealer: Sealer) -> Iterator[MadePart]:
        """The data objects, in order, after `deal`."""
        assert self._dealt is not None
        for number in range(-(-self.data_bytes // PART_BYTES)):
            size = min(PART_BYTES, self.data_bytes - number * PART_BYTES)
            data = memoryview(self._dealt.part(number, size))
            pieces = [data[at : at + PIECE_BYTES] for at in range(0, size, PIECE_BYTES)]
            crcs = [crc32c(piece) for piece in pieces]
            yield MadePart(build_data(pieces, sealer), [len(p) for p in pieces], crcs)

    def indexes(self, made: MadeParts) -> Iterator[IndexContent]:
        """The indexes of all parts, each with what lies between its first and its last."""
        length = np.where(self._entries.column("op") == Op.WRITE, self._entries.column("length"), 0)
        ends = np.cumsum(length, dtype=np.uint64)
        part, first = 0, 0
        while True:
            last = self._index_end(ends, first)
            until = len(made.heads)
            if last < len(ends):
                until = int(ends[last - 1]) // PART_BYTES
            columns = {n: self._entries.rows_of(n, first, last) for n in _ENTRY_KINDS}
            yield made.index(columns, part, until)
            part, first = until, last
            if first >= len(ends):
                return

    def _index_end(self, ends: NDArray[np.uint64], first: int) -> int:
        """One after the last entry of the index that begins with entry `first`: a part ends
        there."""
        wanted = first + INDEX_ENTRIES
        if wanted >= len(ends):
            return len(ends)
        edge = -(-int(ends[wanted]) // PART_BYTES) * PART_BYTES
        if edge >= int(ends[-1]):
            return len(ends)
        # The entry that fills the part up; zeroes that follow belong to the next index.
        return max(wanted, int(np.searchsorted(ends, np.uint64(edge), "left")) + 1)


def _split_zeroes(found: Visible) -> Visible:
    large = ~found.is_data & (found.length > np.uint64(_ZERO_BYTES_MAX))
    if not large.any():
        return found
    count = np.where(large, -(-found.length.astype(np.int64) // _ZERO_BYTES_MAX), 1)
    index = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    skipped = within.astype(np.uint64) * np.uint64(_ZERO_BYTES_MAX)
    rest = found.length[index] - skipped
    length = np.where(large[index], np.minimum(rest, np.uint64(_ZERO_BYTES_MAX)), rest)
    return Visible(found.disk[index], found.start[index] + skipped, length, found.is_data[index],
                   found.frame[index], found.at[index])  # fmt: skip


def _split_at_pieces(
    found: Visible, where: NDArray[np.uint64]
) -> tuple[Visible, NDArray[np.uint64]]:
    """No entry reaches over the end of a piece."""
    unit = np.uint64(PIECE_BYTES)
    length = np.where(found.is_data, found.length, 1).astype(np.uint64)
    count = ((where + length - np.uint64(1)) // unit - where // unit + np.uint64(1)).astype(
        np.int64
    )
    if (count == 1).all():
        return found, where
    index = np.repeat(np.arange(len(count)), count)
    within = (np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)).astype(np.uint64)
    begin = where[index]
    low = np.maximum(begin, (begin // unit + within) * unit)
    high = np.minimum(begin + length[index], (begin // unit + within + np.uint64(1)) * unit)
    cut = low - begin
    is_data = found.is_data[index]
    return (
        Visible(
            found.disk[index],
            found.start[index] + cut,
            np.where(is_data, high - low, found.length[index]),
            is_data,
            found.frame[index],
            found.at[index] + cut.astype(np.uint32),
        ),
        low,
    )


def _merged(found: Visible, where: NDArray[np.uint64]) -> Columns:
    """Entries of an index: neighbours of a piece as one."""
    end = found.start + found.length
    joins = (found.disk[1:] == found.disk[:-1]) & (found.start[1:] == end[:-1])
    joins &= found.is_data[1:] & found.is_data[:-1]
    joins &= where[1:] % np.uint64(PIECE_BYTES) != 0
    first = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(~joins) + 1])
    last = np.append(first[1:], len(found.start)) - 1
    return {
        "offset": found.start[first],
        "length": (end[last] - found.start[first]).astype(np.uint32),
        "disk": found.disk[first].astype(np.uint16),
        "op": np.where(found.is_data[first], int(Op.WRITE), int(Op.ZERO)).astype(np.uint8),
    }


@dataclass
class _Batch:
    """Frames with their pieces."""

    length: int = 0
    _plain: list[bytes] = field(default_factory=list)
    _columns: list[Columns] = field(default_factory=list)

    def add(self, plain: bytes, columns: Columns) -> None:
        """A frame."""
        moved = columns["at"].astype(np.int64) + self.length
        self._columns.append({"where": columns["where"], "length": columns["length"], "at": moved})
        rest = -len(plain) % SECTOR_BYTES
        self._plain.append(plain + bytes(rest) if rest else plain)
        self.length += len(plain) + rest

    def gathered(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint8]]:
        """(where, length, data) of all pieces, in the order of where they go."""
        names = ("where", "length", "at")
        columns = {n: np.concatenate([c[n] for c in self._columns]) for n in names}
        # One byte more than a sector behind the end: for what is not aligned in its payload.
        data = np.frombuffer(b"".join([*self._plain, bytes(SECTOR_BYTES)]), np.uint8)
        order = np.argsort(columns["where"], kind="stable")
        where, length = columns["where"][order], columns["length"][order]
        at, count = columns["at"][order], length.astype(np.int64) // SECTOR_BYTES
        out = np.empty((int(count.sum()), SECTOR_BYTES), np.uint8)
        target = np.cumsum(count) - count
        for shift in np.unique(at % SECTOR_BYTES).tolist():
            chosen = np.flatnonzero(at % SECTOR_BYTES == shift)
            rows = data[shift : shift + (len(data) - shift) // SECTOR_BYTES * SECTOR_BYTES]
            source = _runs(at[chosen] // SECTOR_BYTES, count[chosen])
            taken = rows.reshape(-1, SECTOR_BYTES)[source]
            if len(chosen) == len(at):
                out = taken
            else:
                out[_runs(target[chosen], count[chosen])] = taken
        return where, length, out.reshape(-1)


def _runs(first: Ints, count: Ints) -> Ints:
    """first[0], first[0] + 1, … count[0] of them, then first[1], …"""
    edges = np.cumsum(count) - count
    rows: Ints = np.arange(int(count.sum())) + np.repeat(first - edges, count)
    return rows


class DataSpool:
    """Data by part in an unlinked temporary file, each chunk sealed under a key of this process."""

    def __init__(self, parts: int, tools: ContentTools) -> None:
        self._chunks: list[list[tuple[int, int, int, int, int]]] = [[] for _ in range(parts)]
        self._pieces = ColumnSpool({"where": "<u8", "length": "<u4"}, tools.directory)
        self._aead = AESGCM(tools.secret)
        self._counter = 0
        self._position = 0
        self._pack = zstandard.ZstdCompressor(level=1)
        try:
            # Closed in close(); its name is gone at once.
            self._file = tempfile.TemporaryFile(dir=tools.directory, prefix=".holdfast-")  # noqa: SIM115
        except OSError as error:
            self._pieces.close()
            raise no_room(error) from error

    def deal(
        self,
        where: NDArray[np.uint64],
        length: NDArray[np.uint32],
        data: NDArray[np.uint8],
    ) -> int:
        """Keep pieces in the order of `where`, their data one after another; returns its bytes."""
        part = (where // np.uint64(PART_BYTES)).astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(length, dtype=np.int64)])
        first = self._pieces.rows
        self._pieces.append({"where": where, "length": length})
        for low, high in pairwise(edges):
            plain = data[int(ends[low]) : int(ends[high])]
            self._append(int(part[low]), plain, (first + low, first + high))
        return len(data)

    def _append(self, part: int, plain: NDArray[np.uint8], rows: tuple[int, int]) -> None:
        sealed = self._aead.encrypt(
            self._nonce(self._counter), self._pack.compress(plain.data), None
        )
        try:
            self._file.write(sealed)
        except OSError as error:
            raise no_room(error) from error
        self._chunks[part].append((self._position, len(sealed), self._counter, *rows))
        self._counter += 1
        self._position += len(sealed)

    @staticmethod
    def _nonce(counter: int) -> bytes:
        return counter.to_bytes(12, "little")

    def part(self, number: int, size: int) -> bytes:
        """A part put together."""
        out = np.zeros((size // SECTOR_BYTES, SECTOR_BYTES), np.uint8)
        base, done = number * PART_BYTES, 0
        for position, length, counter, first, last in self._chunks[number]:
            try:
                self._file.seek(position)
                sealed = self._file.read(length)
            except OSError as error:
                raise no_room(error) from error
            packed = self._aead.decrypt(self._nonce(counter), sealed, None)
            plain = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), np.uint8)
            where = self._pieces.rows_of("where", first, last).astype(np.int64) - base
            count = self._pieces.rows_of("length", first, last).astype(np.int64) // SECTOR_BYTES
            out[_runs(where // SECTOR_BYTES, count)] = plain.reshape(-1, SECTOR_BYTES)
            done += len(plain)
        assert done == size, "a part of a layer is not whole"
        return out.tobytes()

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
        self._pieces.close()
