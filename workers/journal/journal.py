"""A stream's journal in memory and temporary files: what was read of its chain, as columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from host_agent.wire.errors import ChecksumMismatch, WireError
from host_agent.wire.frame import FrameHeader
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity, chain_name
from host_agent.wire.record import RECORD
from host_agent.wire.segment import SegmentInfo
from workers.journal.blocks import FoundIndex, IndexBlock, Instead, Run, run_of_frame, run_of_row
from workers.journal.chain import DAMAGE, read_tail
from workers.journal.columns import Columns
from workers.journal.errors import JournalDamaged, LayerDamaged, PayloadDamaged
from workers.journal.layers import LAYER_PLACES, LayerContent, LayerSet, check_piece
from workers.journal.marks import MarkColumns
from workers.journal.opening import (
    KeyRing,
    OpenedFrame,
    OpenedSegment,
    check_payload,
    joined_records,
)
from workers.journal.runs import (
    ENTRY_COLUMNS,
    FRAME_COLUMNS,
    ROW_COLUMNS,
    FrameInfo,
    FrameSums,
    LayerRun,
    SegmentRun,
)
from workers.journal.spool import ColumnSpool
from workers.journal.statements import Statement
from workers.journal.timeline import Timeline
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

_LINK_BYTES = 32

#: Tails of segments that stand behind an index object, kept for the frames that are opened next.
_TAILS_KEPT = 16


class Keeper(Protocol):
    """Who is told what a journal takes, in order."""

    def take_frame(self, frame: OpenedFrame, running: RecordHash) -> None:
        """A frame of the segment that comes next."""
        ...

    def take_segment(self, info: SegmentInfo) -> None:
        """A segment, after its frames."""
        ...

    def take_index(self, block: IndexBlock) -> None:
        """What an index object stands for."""
        ...


class Journal:
    """A stream's journal, opened. Use as a context manager; it holds temporary files."""

    def __init__(
        self, store: ObjectStore, identity: Identity, keys: KeyRing, spool: Path | None
    ) -> None:
        self.store = store
        self.identity = identity
        self.keys = keys
        self.spool_directory = spool
        self.timeline = Timeline((identity.group, identity.host))
        #: Everything that was taken, in order.
        self.runs: list[Run] = []
        self.frames = 0
        self.damage: JournalDamaged | None = None
        self.statement: Statement | None = None
        self.segments = 0
        self.newest: SegmentInfo | None = None
        self._rows = ColumnSpool(ROW_COLUMNS, spool)
        self._entries = ColumnSpool(ENTRY_COLUMNS, spool)
        self._frames = ColumnSpool(FRAME_COLUMNS, spool)
        self._headers = ColumnSpool({"byte": "u1"}, spool)
        self._links = ColumnSpool({"byte": "u1"}, spool)
        self._link = bytes(_LINK_BYTES)
        self._hash = RecordHash()
        #: The block whose records the running hash goes on from, until a segment follows it.
        self._behind: IndexBlock | None = None
        #: What stands for the chain's beginning; None: nothing was given up.
        self.layers: LayerSet | None = None
        self._layer_crcs = np.empty(0, np.uint32)
        self._tail = lru_cache(_TAILS_KEPT)(self._read_tail)
        #: Hears of all that is taken, where index objects are made.
        self.keeper: Keeper | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the temporary files back."""
        for run in self.runs:
            if isinstance(run, IndexBlock):
                run.close()
        for spool in (self._rows, self._entries, self._frames, self._headers, self._links):
            spool.close()

    @property
    def rows(self) -> int:
        """Records of the whole chain."""
        return self.timeline.rows

    @property
    def blocks(self) -> list[IndexBlock]:
        """The index objects that stand for segments."""
        return [run for run in self.runs if isinstance(run, IndexBlock)]

    def column(self, name: str) -> NDArray[Any]:
        """A column of the rows of the segments that were opened, one after another."""
        spool = self._rows if name in ROW_COLUMNS else self._entries
        return spool.column(name)

    def entry_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Some of the entries of a column, read so that no memory stays taken."""
        return self._entries.rows_of(name, first, end)

    def frame_column(self, name: str) -> NDArray[Any]:
        """A column of the frames of the segments that were opened."""
        return self._frames.column(name)

    def times(self, first_row: int, end_row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Times and flags of rows, which may be of any run."""
        parts = [
            run.times(max(first_row, run.first_row), min(end_row, run.first_row + run.rows))
            for run in self.runs
            if run.first_row < end_row and run.first_row + run.rows > first_row
        ]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return np.empty(0, np.uint64), np.empty(0, np.uint8)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def time(self, row: int) -> int:
        """The time of a row, nanoseconds UTC."""
        return int(self.times(row, row + 1)[0][0])

    def rows_until(self, first_row: int, end_row: int, time: int) -> int:
        """How many of the rows of one generation are not after `time`: they are the first."""
        for run in reversed(self.runs):
            first, end = max(run.first_row, first_row), min(run.first_row + run.rows, end_row)
            if first >= end:
                continue
            if isinstance(run, IndexBlock) and (run.ends_at(end) and run.newest_time <= time):
                return end - first_row
            # As the column's own type: a Python integer would be compared as a float.
            found = np.searchsorted(self.times(first, end)[0], np.uint64(time), "right")
            if found:
                return first - first_row + int(found)
        return 0

    def frame_of(self, row: int) -> int:
        """The number of the frame that holds a row."""
        return run_of_row(self.runs, row).frame_at(row)

    def marks_between(self, first_row: int, end_row: int) -> MarkColumns:
        """The markers of some rows, counted from the first of them."""
        return self.timeline.marks.between(first_row, end_row)

    @property
    def link(self) -> bytes:
        """`frames_hash` of the newest frame; zeroes before the first."""
        return self._link

    def record_hash(self) -> RecordHash:
        """The running record hash of the newest generation. Raises what DAMAGE names."""
        if self._behind is not None:
            block, self._behind = self._behind, None
            self._hash = RecordHash(block.summary.anchor, block.summary.anchor_hash)
            self._hash.update(block.since_anchor())
        return self._hash

    @property
    def behind(self) -> IndexBlock | None:
        """The index object that the next segment follows, if its record hash was not read yet."""
        return self._behind

    def is_open(self, row: int) -> bool:
        """Whether the row's segment itself was opened: only such moments have a map."""
        return isinstance(run_of_row(self.runs, row), SegmentRun)

    @property
    def first_place(self) -> int:
        """The first place of the chain that is read: those before lie in layers."""
        return self.layers.boundary.first_place if self.layers is not None else 1

    def object_name(self, place: int) -> str:
        """The name of the object that holds the data of the frames of a place."""
        if place >= LAYER_PLACES and self.layers is not None:
            return self.layers.part_name(place)
        return chain_name(self.identity, place)

    def frame(self, number: int) -> FrameInfo:
        """Where a frame lies."""
        found = run_of_frame(self.runs, number).frame(number)
        generation, _ = self.timeline.position(found["first_row"])
        names = ("place", "first_row", "records", "payload_offset", "payload_sealed",
                 "payload_plain")  # fmt: skip
        return FrameInfo(number, generation=generation, **{name: found[name] for name in names})

    def frame_range(self, first: int, end: int) -> Columns:
        """The columns of frames, which may be of any run, and their first rows."""
        parts = [
            run.frame_columns(max(first, run.first_frame), min(end, run.first_frame + run.frames))
            for run in self.runs
            if run.first_frame < end and run.first_frame + run.frames > first
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def frames_hash(self, number: int) -> bytes:
        """A running BLAKE3 of the clear headers of all frames up to `number`: they hold the record
        hashes."""
        at = max(0, self._spooled(number)) * _LINK_BYTES
        return self._links.column("byte")[at : at + _LINK_BYTES].tobytes()

    def open_payload(self, frame: FrameInfo, sealed: bytes | memoryview) -> bytes:
        """The frame's data, authenticated and checked against the tap's CRCs; PayloadDamaged."""
        if frame.place >= LAYER_PLACES:
            return self._open_piece(frame, sealed)
        generation = self.timeline.generations[frame.generation]
        try:
            header_bytes = self._header_bytes(frame)
            header = FrameHeader.unpack(header_bytes)
            opener = self.keys.opener(generation.name)
            plain = opener.open_payload(header, header_bytes, sealed)
            sums = self.frame_sums(frame)
            check_payload(plain, sums.crc, sums.payload_length, header.first_seq)
        except DAMAGE as error:
            name = chain_name(self.identity, frame.place)
            raise PayloadDamaged(
                frame.place, f"The data of {name} cannot be used: {error.message}"
            ) from error
        return plain

    def _open_piece(self, frame: FrameInfo, sealed: bytes | memoryview) -> bytes:
        assert self.layers is not None
        try:
            plain = self.layers.open_piece(frame.place, frame.number, sealed, frame.payload_plain)
            check_piece(plain, int(self._layer_crcs[frame.number]))
        except DAMAGE as error:
            name = self.object_name(frame.place)
            place = self.layers.clear.newest.place
            raise PayloadDamaged(
                place, f"The data of {name} cannot be used: {error.message}"
            ) from error
        return plain

    def _spooled(self, number: int) -> int:
        """The place of an opened frame in the spools; -1 for one behind an index object, and for
        none: a layer may end where no data was ever written."""
        if number < 0:
            return -1
        run = run_of_frame(self.runs, number)
        if not isinstance(run, SegmentRun):
            return -1
        return number - run.first_frame + run.spooled_frame

    def _header_bytes(self, frame: FrameInfo) -> bytes:
        spooled = self._spooled(frame.number)
        if spooled < 0:
            return self._behind_index(frame).ref.header_bytes
        length = int(self._frames.column("header_length")[spooled])
        at = int(self._frames.column("header_at")[spooled])
        return self._headers.column("byte")[at : at + length].tobytes()

    def frame_sums(self, frame: FrameInfo) -> FrameSums:
        """A frame's records' checksums; PayloadDamaged where they must be read and cannot be."""
        if frame.place >= LAYER_PLACES:
            crc = self._layer_crcs[frame.number : frame.number + 1]
            return FrameSums(np.zeros(1, np.uint32), np.full(1, frame.payload_plain), crc)
        names = ("payload_at", "payload_length", "crc")
        run = run_of_frame(self.runs, frame.number)
        if isinstance(run, SegmentRun):
            first = frame.first_row - run.first_row + run.entry_range()[0]
            end = first + frame.records
            return FrameSums(*(self.entry_rows(name, first, end) for name in names))
        records = self._behind_index(frame).records
        ends = np.cumsum(records["payload_length"], dtype=np.uint32)
        length = records["payload_length"].astype(np.uint32)
        return FrameSums(ends - length, length, records["crc"].astype(np.uint32))

    def _behind_index(self, frame: FrameInfo) -> OpenedFrame:
        """A frame of a segment that an index object stood for, read now; PayloadDamaged."""
        try:
            return self._tail(frame.place)[frame.payload_offset, frame.payload_sealed]
        except (KeyError, ObjectMissing, *DAMAGE) as error:
            name = chain_name(self.identity, frame.place)
            why = getattr(error, "message", "it is another one than its index object says.")
            raise PayloadDamaged(
                frame.place, f"The segment {name} cannot be used: {why}"
            ) from error

    def _read_tail(self, place: int) -> dict[tuple[int, int], OpenedFrame]:
        info, refs = read_tail(self.store, self.identity, place)
        if info.place != place or info.identity_hash != self.identity.hash:
            raise WireError("it belongs to another place or to another stream.")
        opener = self.keys.opener(info.generation)
        frames = [
            OpenedFrame(ref, opener.open_index(ref.header, ref.header_bytes, ref.index), {})
            for ref in refs
        ]
        return {(f.ref.payload_offset, f.ref.payload_length): f for f in frames}

    def take_layers(self, layers: LayerSet) -> None:
        """Begin with layers, before anything else is taken; LayerDamaged, JournalMoved."""
        assert not self.rows
        self.layers = layers
        try:
            self.timeline.begin_with(layers.base())
        except (ValueError, WireError) as error:
            raise LayerDamaged(layers.name, str(error)) from error
        run = LayerRun(self)
        crcs = [np.empty(0, np.uint32)]
        for row, content in enumerate(layers.contents(self.keys)):
            self._take_layer(row, content)
            crcs.append(content.frames["crc"])
        self._layer_crcs = np.concatenate(crcs)
        run.rows, run.frames, self.frames = self.rows, self._frames.rows, self._frames.rows
        run.entry_count = self._entries.rows
        self.runs.append(run)
        body = layers.body
        self._hash = RecordHash(body.anchor, body.anchor_hash)
        self._hash.update(np.frombuffer(body.since_anchor, RECORD))
        self._link = body.link
        self.newest = layers.clear.newest
        if self._hash.digest() != self.newest.record_hash:
            raise LayerDamaged(layers.name, "its record hash is another than its trailer's.")

    def _take_layer(self, row: int, content: LayerContent) -> None:
        end = self.layers.body.ends[row] if self.layers is not None else None
        assert end is not None
        self._rows.append({"time": np.array([end.time], np.uint64), "flags": np.zeros(1, np.uint8)})
        count, frames = len(content.entries["offset"]), len(content.frames["place"])
        self._entries.append(
            {
                **{name: np.zeros(count, np.uint32) for name in ("aux", "crc", "payload_length")},
                **content.entries,
                "row": np.full(count, row, np.uint64),
            }
        )
        self._frames.append(
            {
                **content.frames,
                "first_row": np.full(frames, row, np.uint64),
                **{n: np.zeros(frames, np.uint32) for n in ("records", "header_at")},
                "header_length": np.zeros(frames, np.uint32),
            }
        )
        self._links.append({"byte": np.zeros(frames * _LINK_BYTES, np.uint8)})

    def take_index(self, found: FoundIndex, instead: Callable[[], Instead]) -> None:
        """Add what an index object stands for: the next places of the chain. WireError.

        `instead` opens the journal without it, for when a part of it turns out to be damaged.
        """
        newest, head = self.newest, found.head
        if (newest.hash if newest else bytes(32)) != head.previous:
            raise WireError("The index object does not follow the segment before it.")
        block = IndexBlock(found, (self.rows, self.frames), instead)
        for part in block.summary.generations:
            if not self.timeline.generations or self.timeline.generations[-1].name != part.name:
                self.timeline.start_generation(part.name)
            self.timeline.replay(part.records, part.specials)
        self.timeline.marks.add_later(block.marks)
        self.runs.append(block)
        self.frames += block.frames
        self._link = block.summary.link
        self._behind = block
        self.segments += head.last_place - head.first_place + 1
        self.newest = head.newest
        generations = self.timeline.generations
        stated = (generations[-1].name, generations[-1].last_seq) if generations else (bytes(16), 0)
        if stated != (head.newest.generation, head.newest.last_seq):
            raise WireError("The index object's trailer states another position than it leads to.")
        if self.keeper is not None:
            self.keeper.take_index(block)

    def take(self, segments: Sequence[OpenedSegment]) -> None:
        """Add the next segments of the chain, to the first that contradicts what was before it or
        has a problem: raises what DAMAGE names, or that problem."""
        self.record_hash()
        if not self.runs or type(self.runs[-1]) is not SegmentRun:
            spooled = (self._rows.rows, self._frames.rows, self._entries.rows)
            self.runs.append(SegmentRun(self, spooled))
        taken: list[tuple[int, OpenedFrame]] = []
        try:
            for segment in segments:
                if segment.problem is not None:
                    raise segment.problem
                for frame in segment.frames:
                    self._take_frame(frame)
                    taken.append((segment.info.place, frame))
                self._check_position(segment.info)
                self.segments += 1
                self.newest = segment.info
        finally:
            self._store_frames(taken)
        if self.keeper is not None:
            for segment in segments:
                self.keeper.take_segment(segment.info)

    def _take_frame(self, frame: OpenedFrame) -> None:
        header = frame.ref.header
        timeline = self.timeline
        if not timeline.generations or timeline.generations[-1].name != header.generation:
            timeline.start_generation(header.generation)
            self._hash = RecordHash()
        self._hash.update(frame.records)
        if self._hash.digest() != header.record_hash:
            raise ChecksumMismatch(
                f"The records up to sequence {header.last_seq} do not match their hash."
            )
        timeline.add(frame.records, frame.bodies, header.markers)
        if self.keeper is not None:
            self.keeper.take_frame(frame, self._hash)

    def _store_frames(self, taken: list[tuple[int, OpenedFrame]]) -> None:
        """Keep the frames, with their places, that the timeline has taken: they are the journal's
        newest rows."""
        if not taken:
            return
        frames = [frame for _, frame in taken]
        records = joined_records(frames)
        counts = np.array([len(frame.records) for frame in frames], np.uint64)
        first_rows = np.uint64(self.rows - len(records)) + np.cumsum(counts) - counts
        lengths = records["payload_length"].astype(np.uint64)
        ends = np.cumsum(lengths, dtype=np.uint64)
        starts = (first_rows - first_rows[0]).astype(np.int64)
        number = np.arange(len(frames)).repeat(counts.astype(np.int64))
        self._rows.append({name: records[name] for name in ROW_COLUMNS})
        names = ("offset", "aux", "length", "crc", "payload_length", "disk", "op")
        columns: Columns = {name: records[name] for name in names}
        columns["row"] = np.arange(self.rows - len(records), self.rows, dtype=np.uint64)
        columns["payload_at"] = ends - lengths - (ends - lengths)[starts][number]
        columns["frame"] = self.frames + number
        self._entries.append(columns)
        headers = [frame.ref.header_bytes for frame in frames]
        header_lengths = np.array([len(header) for header in headers], np.uint64)
        values = {
            "place": np.array([place for place, _ in taken]),
            "first_row": first_rows,
            "records": counts,
            "payload_offset": np.array([frame.ref.payload_offset for frame in frames]),
            "payload_sealed": np.array([frame.ref.payload_length for frame in frames]),
            "payload_plain": np.array([frame.ref.header.payload_plain for frame in frames]),
            "header_at": np.uint64(self._headers.rows) + np.cumsum(header_lengths) - header_lengths,
            "header_length": header_lengths,
        }
        self._frames.append(values)
        self._headers.append({"byte": np.frombuffer(b"".join(headers), np.uint8)})
        links = []
        for header in headers:
            self._link = blake3(self._link + header).digest()
            links.append(self._link)
        self._links.append({"byte": np.frombuffer(b"".join(links), np.uint8)})
        run = self.runs[-1]
        run.rows += len(records)
        run.frames += len(frames)
        self.frames += len(frames)

    def _check_position(self, info: SegmentInfo) -> None:
        """A trailer states the position and the hash that its frames lead to, epoch segments
        too."""
        generations = self.timeline.generations
        name = generations[-1].name if generations else bytes(16)
        last = generations[-1].last_seq if generations else 0
        stated = (info.generation, info.last_seq, info.record_hash)
        if stated != (name, last, self._hash.digest() if generations else info.record_hash):
            raise WireError("Its trailer states another position than its frames lead to.")
