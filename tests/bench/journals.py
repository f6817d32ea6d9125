"""Long journals, made quickly: of so many writes, and of a month at a segment a second.

Each block holds the same byte, so that its data compresses to nothing; what is measured is finding
it. All codecs are the product's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.crc import crc32c
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity, chain_name, index_name
from host_agent.wire.pieces import Content
from host_agent.wire.record import RECORD, Op, Records, State
from host_agent.wire.segment import KIND_DATA, SegmentInfo
from tests.bench.nbd_writer import corpus
from tests.model.builder import START_AT, JournalBuilder
from tests.model.store import MemoryStore
from workers.journal import indexfile
from workers.journal.columns import ENTRIES, FRAMES, ROWS, pack
from workers.journal.indexfile import (
    GenerationPart,
    IndexBuilder,
    IndexHead,
    Kind,
    Section,
    Summary,
)
from workers.journal.marks import MarkColumns
from workers.journal.timeline import Special
from workers.storage.local import LocalStore
from workers.storage.port import Created, ObjectStore

DISK_BYTES = 64 << 30
BLOCK_BYTES = 4096
BLOCK = b"\x5a" * BLOCK_BYTES
_CRC = crc32c(BLOCK)
_FRAME_RECORDS = 1024
_BLOCKS = DISK_BYTES // BLOCK_BYTES
_SECOND = 1_000_000_000
_PIECE_BYTES = 4 << 20
_WRITE_BYTES = 256 << 10


class Unsynced(LocalStore):
    """A local store that does not wait for its disk: only the making of a journal is quicker."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.url = f"file://{folder}"

    def put_if_absent(self, name: str, data: Content) -> Created:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(bytes(data))
        return Created.CREATED


@dataclass(frozen=True)
class MadeJournal:
    """A journal, and blocks of its disk that were written (bytes)."""

    builder: JournalBuilder
    written: list[int]


def _places(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Where blocks are written: half of them in a sixteenth of the disk."""
    near = rng.integers(0, _BLOCKS // 16, count)
    far = rng.integers(0, _BLOCKS, count)
    return (np.where(rng.random(count) < 0.5, near, far) * BLOCK_BYTES).astype(np.uint64)


def _writes(first_seq: int, time: int, offsets: NDArray[np.uint64]) -> Records:
    records = np.zeros(len(offsets), RECORD)
    records["seq"] = np.arange(first_seq, first_seq + len(offsets))
    records["time"] = time
    records["offset"] = offsets
    records["length"] = records["payload_length"] = BLOCK_BYTES
    records["crc"], records["op"] = _CRC, Op.WRITE
    return records


def _begun(store: ObjectStore) -> JournalBuilder:
    builder = JournalBuilder(store)
    builder.generation({"disk": DISK_BYTES})
    builder.end()
    builder.segment()
    return builder


def of_writes(store: ObjectStore, count: int, segment_writes: int) -> MadeJournal:
    """A journal of `count` writes; the last record is a checkpoint."""
    builder = _begun(store)
    rng = np.random.default_rng(5)
    written: list[int] = []
    seq, left = builder.model.seq, count
    while left:
        of_segment = min(left, segment_writes)
        left -= of_segment
        for at in range(0, of_segment, _FRAME_RECORDS):
            number = min(_FRAME_RECORDS, of_segment - at)
            builder.now += _SECOND // 100
            offsets = _places(rng, number)
            builder.add_frame(_writes(seq + 1, builder.now, offsets), BLOCK * number)
            seq += number
            written += offsets[:1].tolist()
        builder.segment()
    builder.model.seq = seq
    builder.mark()
    builder.segment()
    return MadeJournal(builder, written)


def of_files(store: ObjectStore, image: Path, size: int) -> MadeJournal:
    """A disk of `size` bytes, 4 MiB of files and 4 MiB of holes in turn, as `image` has it too."""
    builder = JournalBuilder(store)
    builder.generation({"disk": size})
    builder.end()
    builder.segment()
    content = corpus(size // 2)
    seq = builder.model.seq
    with image.open("wb") as file:
        file.truncate(size)
        for number in range(size // (2 * _PIECE_BYTES)):
            piece = content[number * _PIECE_BYTES : (number + 1) * _PIECE_BYTES]
            offset = 2 * number * _PIECE_BYTES
            records = np.zeros(_PIECE_BYTES // _WRITE_BYTES, RECORD)
            records["seq"] = np.arange(seq + 1, seq + 1 + len(records))
            seq += len(records)
            builder.now += _SECOND // 100
            records["time"], records["op"] = builder.now, Op.WRITE
            starts = np.arange(len(records)) * _WRITE_BYTES
            records["offset"] = offset + starts
            records["length"] = records["payload_length"] = _WRITE_BYTES
            records["crc"] = [crc32c(piece[s : s + _WRITE_BYTES]) for s in starts.tolist()]
            builder.add_frame(records, piece)
            file.seek(offset)
            file.write(piece)
            if number % 4 == 3:
                builder.segment()
    builder.model.seq = seq
    builder.mark()
    builder.segment()
    return MadeJournal(builder, [])


# -- a month


_EACH = 4
_MARK_EVERY = 5


class Month:
    """A journal of a segment a second, four writes each and a checkpoint every five seconds.

    Index objects, the segments behind the last of them, and those that are read from are real. The
    other segments are names of stand-ins: no restore reads them, and a listing shows them.
    """

    def __init__(self, store: ObjectStore, places: int) -> None:
        self._store = store
        self.builder = _begun(store)
        self._identity: Identity = self.builder.identity
        self._places = places
        self._rng = np.random.default_rng(7)
        self._key = self.builder._data_key
        self._generation = self.builder.generations[-1]
        self._previous = bytes(32)
        self._written: list[int] = []
        self._since = np.empty(0, RECORD)
        self._seq = 0

    def make(self) -> MadeJournal:
        """All of it."""
        small = indexfile.SPAN
        large = small * small
        done = self._places // large * large
        for number in range(1, done // large + 1):
            self._index(2, number)
        for number in range(done // small + 1, self._places // small + 1):
            self._index(1, number)
        self._tail(self._places - self._places // small * small)
        return MadeJournal(self.builder, self._written)

    def _records_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.where(places % _MARK_EVERY == 0, _EACH + 1, _EACH)
        return np.where(places == 1, 0, np.where(places == 2, 2, found))

    def _index(self, level: int, number: int) -> None:
        span = indexfile.SPAN**level
        places = np.arange((number - 1) * span + 1, number * span + 1)
        counts = self._records_of(places)
        rows = int(counts.sum())
        row_place = np.repeat(places, counts)
        within = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        is_mark = (within == _EACH) & (row_place % _MARK_EVERY == 0)
        is_write = ~is_mark & (row_place > 2)
        records = np.zeros(rows, RECORD)
        records["seq"] = np.arange(self._seq + 1, self._seq + 1 + rows)
        records["time"] = START_AT + row_place.astype(np.uint64) * np.uint64(_SECOND)
        records["offset"][is_write] = _places(self._rng, int(is_write.sum()))
        for name in ("length", "payload_length"):
            records[name][is_write] = BLOCK_BYTES
        records["crc"][is_write] = _CRC
        records["op"] = np.where(is_mark, Op.MARK, Op.WRITE)
        records["disk"][is_mark] = 0xFFFF
        if number == 1 and level == 2:
            records["op"][:2] = Op.BEGIN, Op.END
            records["disk"][:2] = 0xFFFF
        self._real_segment(records, row_place, is_write)
        self._put(level, number, _Block(places, counts, records, within, is_mark, is_write))
        self._seq += rows

    def _real_segment(
        self, records: Records, place: NDArray[np.int64], is_write: NDArray[np.bool_]
    ) -> None:
        """One segment of the block that can be read from."""
        chosen = int(place[len(place) // 2]) // _MARK_EVERY * _MARK_EVERY + 1
        own = records[place == chosen]
        builder, info = self.builder, self.builder._newest
        held = builder._hash
        builder._newest = SegmentInfo(
            KIND_DATA, chosen - 1, builder.epoch, bytes(32), self._identity.hash, self._generation,
            builder.writer, 1, int(own["seq"][0]) - 1, int(own["time"][0]), builder.now, bytes(32),
            state=State.RECORDING,
        )  # fmt: skip
        builder._hash = RecordHash(0)
        builder._hash.position = int(own["seq"][0]) - 1
        builder.add_frame(own, BLOCK * len(own))
        builder.segment()
        builder._newest, builder._hash = info, held
        later = set(records["offset"][(place > chosen) & is_write].tolist())
        touched = set(records["offset"].tolist())
        before = [offset for offset in self._written if offset not in touched]
        self._written = before + [o for o in own["offset"].tolist() if o not in later]

    def _put(self, level: int, number: int, block: _Block) -> None:
        records = block.records
        builder = IndexBuilder(level, number, self._key)
        marks = block.marks()
        builder.add(Section(Kind.MARKS, len(marks.ids), 0, 0), marks.packed())
        for first in range(0, len(records), indexfile.SECTION_ROWS):
            cut = records[first : first + indexfile.SECTION_ROWS]
            section = Section(Kind.ROWS, len(cut), 0, 0, low=first)
            builder.add(section, pack({n: cut[n] for n in ROWS}, ROWS))
        for section, columns in block.frames():
            builder.add(section, pack(columns, FRAMES))
        seq = int(records["seq"][-1])
        anchor = seq - seq % 4096
        since = np.concatenate([self._since, records])
        self._since = since[since["seq"] > anchor]
        builder.add(Section(Kind.ANCHOR, len(self._since), 0, 0), self._since.tobytes())
        for section, columns in block.entries():
            builder.add(section, pack(columns, ENTRIES))
        running = RecordHash(anchor)
        running.update(self._since)
        last = int(block.places[-1])
        newest = SegmentInfo(
            KIND_DATA, last, self.builder.epoch, self._previous, self._identity.hash,
            self._generation, self.builder.writer, seq, seq, int(records["time"][-1]),
            int(records["time"][-1]), running.digest(), frames=1, tail_length=1000,
            object_length=2000, state=State.RECORDING, hash=number.to_bytes(32, "big"),
        )  # fmt: skip
        specials = []
        if number == 1 and level == 2:
            bodies = [json.dumps(r.event.body).encode() for r in self.builder.log[:2]]
            specials = [Special(records[i : i + 1].tobytes(), bodies[i]) for i in range(2)]
        part = GenerationPart(self._generation, len(records), specials)
        summary = Summary(
            [part], int((block.counts > 0).sum()), anchor, bytes(32), bytes(32), builder.sections
        )
        head = IndexHead(level, number, self._identity.hash, self._previous, newest)
        name = index_name(self._identity, level, number)
        self._store.put_if_absent(name, builder.finish(head, summary, self._identity))
        self._previous = newest.hash
        self.builder._newest, self.builder._hash = newest, running
        self.builder.now = newest.committed_at
        self.builder.model.seq = seq

    def _tail(self, count: int) -> None:
        builder = self.builder
        builder.model.seq = self._seq
        for _ in range(count - 1):
            builder.now += _SECOND
            offsets = _places(self._rng, _EACH)
            records = _writes(builder.model.seq + 1, builder.now, offsets)
            builder.add_frame(records, BLOCK * _EACH)
            builder.model.seq += _EACH
            builder.segment()
            touched = set(offsets.tolist())
            self._written = [offset for offset in self._written if offset not in touched]
        builder.mark()
        builder.segment()


@dataclass(frozen=True)
class _Block:
    """What an index object stands for."""

    places: NDArray[np.int64]
    counts: NDArray[np.int64]
    records: Records
    within: NDArray[np.int64]
    is_mark: NDArray[np.bool_]
    is_write: NDArray[np.bool_]

    def marks(self) -> MarkColumns:
        rows = np.flatnonzero(self.is_mark).astype(np.uint64)
        ids = np.zeros((len(rows), 16), np.uint8)
        ids[:, :8] = self.records["seq"][self.is_mark].astype(">u8").view(np.uint8).reshape(-1, 8)
        none = MarkColumns.of([], [])
        one = np.ones(len(rows), np.uint8)
        times = self.records["time"][self.is_mark]
        return MarkColumns(
            rows, times, one, one, ids, {}, none.commit_row, none.commit_seq, none.commit_ids
        )

    def frames(self) -> Iterator[tuple[Section, dict[str, NDArray[np.uint64]]]]:
        held = self.counts > 0
        counts = self.counts[held].astype(np.uint64)
        first_rows = np.cumsum(counts) - counts
        number = len(counts)
        columns = {
            "place": self.places[held].astype(np.uint64),
            "records": counts,
            "payload_offset": np.full(number, 16, np.uint64),
            "payload_sealed": np.full(number, SEALED_BYTES, np.uint64),
            "payload_plain": np.full(number, _EACH * BLOCK_BYTES, np.uint64),
        }
        for first in range(0, number, indexfile.SECTION_FRAMES):
            cut = slice(first, first + indexfile.SECTION_FRAMES)
            part = {name: column[cut] for name, column in columns.items()}
            row = int(first_rows[first])
            count = len(part["place"])
            yield Section(Kind.FRAMES, count, 0, 0, low=first, high=row), part

    def entries(self) -> Iterator[tuple[Section, dict[str, NDArray[np.uint64]]]]:
        """The newest write of each block, by address; within a section by row."""
        rows = np.flatnonzero(self.is_write)[::-1]
        offsets, first = np.unique(self.records["offset"][rows], return_index=True)
        chosen = rows[first]
        held = np.cumsum(self.counts > 0) - 1
        frame = np.repeat(held, self.counts)
        for at in range(0, len(offsets), indexfile.SECTION_ENTRIES):
            cut = slice(at, at + indexfile.SECTION_ENTRIES)
            order = np.argsort(chosen[cut])
            row, offset = chosen[cut][order], offsets[cut][order]
            columns = {
                "row": row, "offset": offset, "aux": np.zeros(len(row)),
                "length": np.full(len(row), BLOCK_BYTES),
                "payload_at": self.within[row] * BLOCK_BYTES, "frame": frame[row],
                "op": np.full(len(row), Op.WRITE),
            }  # fmt: skip
            low, high = int(offsets[cut][0]), int(offsets[cut][-1]) + BLOCK_BYTES
            yield (
                Section(Kind.ENTRIES, len(row), 0, 0, 0, low, high),
                {name: np.asarray(column, np.uint64) for name, column in columns.items()},
            )


def _sealed_bytes() -> int:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"disk": DISK_BYTES})
    builder.add_frame(_writes(1, 1, np.zeros(_EACH, np.uint64)), BLOCK * _EACH)
    return builder._frames[-1].header.payload_sealed


SEALED_BYTES = _sealed_bytes()


def add_stand_ins(folder: Path, identity: Identity, places: int) -> None:
    """Give every place a name: hard links to a few files, as many as a file system allows."""
    chain = folder / chain_name(identity, 1)
    descriptor = os.open(chain.parent, os.O_RDONLY)
    try:
        source = ""
        for number in range(1, places):
            name = f"{number:016x}"
            if number % 60_000 == 1 or not source:
                source = f".stand-in.{number}"
                os.close(os.open(source, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=descriptor))
            try:
                os.link(source, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            except FileExistsError:
                continue
    finally:
        os.close(descriptor)
