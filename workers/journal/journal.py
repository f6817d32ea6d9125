"""A stream's journal in memory and temporary files: what was read of its chain, as columns."""

from __future__ import annotations

from dataclasses import dataclass
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
from workers.journal.chain import DAMAGE, Loaded, read_tail
from workers.journal.errors import JournalDamaged, LayerDamaged, PayloadDamaged
from workers.journal.indexfile import IndexBody, IndexHead
from workers.journal.layers import LAYER_PLACES, LayerContent, LayerSet, check_piece
from workers.journal.opening import (
    KeyRing,
    OpenedFrame,
    OpenedSegment,
    check_payload,
)
from workers.journal.spool import ColumnSpool
from workers.journal.statements import Statement
from workers.journal.timeline import Timeline
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: Of every record, by row.
_ROW_COLUMNS = {"time": "<u8", "flags": "u1"}

#: Of entries, in the order of their rows: the records of segments that were opened, and what index
#: objects kept of others (whole records, or the parts of them that nothing in the interval hides).
_ENTRY_COLUMNS = {
    "row": "<u8",
    "offset": "<u8",
    "aux": "<u8",
    "length": "<u4",
    "crc": "<u4",
    "payload_length": "<u4",
    "payload_at": "<u4",
    "frame": "<u4",
    "disk": "<u2",
    "op": "u1",
}
_FRAME_COLUMNS = {
    "place": "<u8",
    "generation": "<u4",
    "first_row": "<u8",
    "records": "<u4",
    "payload_offset": "<u8",
    "payload_sealed": "<u4",
    "payload_plain": "<u4",
    "header_at": "<u8",
    "header_length": "<u4",
}


@dataclass(frozen=True)
class FrameInfo:
    """Where a frame lies. Bytes and rows; `number` counts the frames of the whole chain."""

    number: int
    place: int
    generation: int
    first_row: int
    records: int
    payload_offset: int
    payload_sealed: int


@dataclass(frozen=True)
class FrameSums:
    """Where each record's data lies in a frame's payload, and the CRC that the tap took of it."""

    payload_at: NDArray[np.uint32]
    payload_length: NDArray[np.uint32]
    crc: NDArray[np.uint32]


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

    def take_index(self, head: IndexHead, body: IndexBody) -> None:
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
        self.damage: JournalDamaged | None = None
        self.statement: Statement | None = None
        self.segments = 0
        self.newest: SegmentInfo | None = None
        self._rows = ColumnSpool(_ROW_COLUMNS, spool)
        self._entries = ColumnSpool(_ENTRY_COLUMNS, spool)
        self._frames = ColumnSpool(_FRAME_COLUMNS, spool)
        self._headers = ColumnSpool({"byte": "u1"}, spool)
        self._links = ColumnSpool({"byte": "u1"}, spool)
        self._link = bytes(_LINK_BYTES)
        self._hash = RecordHash()
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
        for spool in (self._rows, self._entries, self._frames, self._headers, self._links):
            spool.close()

    @property
    def rows(self) -> int:
        """Records of the whole chain."""
        return self._rows.rows

    @property
    def frames(self) -> int:
        """Frames of the whole chain."""
        return self._frames.rows

    def column(self, name: str) -> NDArray[Any]:
        """`time` and `flags` by row; any other column of `_ENTRY_COLUMNS` by entry."""
        spool = self._rows if name in _ROW_COLUMNS else self._entries
        return spool.column(name)

    def entries(self, first_row: int, end_row: int) -> tuple[int, int]:
        """The entries of the rows from `first_row` up to before `end_row`: first, and one after the
        last."""
        ends = np.array([first_row, end_row], np.uint64)
        first, end = np.searchsorted(self._entries.column("row"), ends).tolist()
        return first, end

    def frame_of(self, row: int) -> int:
        """The number of the frame that holds a row."""
        first_rows = self._frames.column("first_row")
        return int(np.searchsorted(first_rows, np.uint64(row), "right")) - 1

    @property
    def link(self) -> bytes:
        """`frames_hash` of the newest frame; zeroes before the first."""
        return self._link

    @property
    def record_hash(self) -> RecordHash:
        """The running record hash of the newest generation."""
        return self._hash

    def is_open(self, row: int) -> bool:
        """Whether the row's segment itself was opened: only such moments have a map."""
        if row < len(self.timeline.layers):
            return True
        return bool(self._frames.column("header_length")[self.frame_of(row)])

    @property
    def first_place(self) -> int:
        """The first place of the chain that is read: those before lie in layers."""
        return self.layers.boundary.first_place if self.layers is not None else 1

    def object_name(self, place: int) -> str:
        """The name of the object that holds the data of the frames of a place."""
        if place >= LAYER_PLACES and self.layers is not None:
            return self.layers.part_name(place)
        return chain_name(self.identity, place)

    @property
    def entry_count(self) -> int:
        """Entries of the whole chain."""
        return self._entries.rows

    def frame_column(self, name: str) -> NDArray[Any]:
        """A column of all frames."""
        return self._frames.column(name)

    def frame(self, number: int) -> FrameInfo:
        """Where a frame lies."""
        value = {
            name: int(self._frames.column(name)[number])
            for name in (
                "place",
                "generation",
                "first_row",
                "records",
                "payload_offset",
                "payload_sealed",
            )
        }
        return FrameInfo(number, **value)

    def frames_hash(self, number: int) -> bytes:
        """A running BLAKE3 of the clear headers of all frames up to `number`: they hold the record
        hashes."""
        at = number * _LINK_BYTES
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
        length = int(self._frames.column("payload_plain")[frame.number])
        try:
            plain = self.layers.open_piece(frame.place, frame.number, sealed, length)
            check_piece(plain, int(self._layer_crcs[frame.number]))
        except DAMAGE as error:
            name = self.object_name(frame.place)
            place = self.layers.clear.newest.place
            raise PayloadDamaged(
                place, f"The data of {name} cannot be used: {error.message}"
            ) from error
        return plain

    def _header_bytes(self, frame: FrameInfo) -> bytes:
        length = int(self._frames.column("header_length")[frame.number])
        if not length:
            return self._behind_index(frame).ref.header_bytes
        at = int(self._frames.column("header_at")[frame.number])
        return self._headers.column("byte")[at : at + length].tobytes()

    def frame_sums(self, frame: FrameInfo) -> FrameSums:
        """A frame's records' checksums; PayloadDamaged where they must be read and cannot be."""
        if frame.place >= LAYER_PLACES:
            crc = self._layer_crcs[frame.number : frame.number + 1]
            plain = self._frames.column("payload_plain")[frame.number : frame.number + 1]
            return FrameSums(np.zeros(1, np.uint32), plain, crc)
        names = ("payload_at", "payload_length", "crc")
        if int(self._frames.column("header_length")[frame.number]):
            first, end = self.entries(frame.first_row, frame.first_row + frame.records)
            return FrameSums(*(self._entries.column(name)[first:end] for name in names))
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
        crcs = [np.empty(0, np.uint32)]
        for row, content in enumerate(layers.contents(self.keys)):
            self._take_layer(row, content)
            crcs.append(content.frames["crc"])
        self._layer_crcs = np.concatenate(crcs)
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
        kept = self.timeline.layers[row]
        self._frames.append(
            {
                **content.frames,
                "generation": np.full(frames, kept.generation, np.uint32),
                "first_row": np.full(frames, row, np.uint64),
                **{n: np.zeros(frames, np.uint32) for n in ("records", "header_at")},
                "header_length": np.zeros(frames, np.uint32),
            }
        )
        self._links.append({"byte": np.zeros(frames * _LINK_BYTES, np.uint8)})

    def take_index(self, head: IndexHead, body: IndexBody) -> None:
        """Add what an index object stands for: the next places of the chain. WireError."""
        newest = self.newest
        if (newest.hash if newest else bytes(32)) != head.previous:
            raise WireError("The index object does not follow the segment before it.")
        rows, frames = self._rows.rows, self._frames.rows
        count = len(body.entries["row"])
        zeroes = np.zeros(count, np.uint32)
        self._entries.append(
            {
                **body.entries,
                "row": body.entries["row"] + np.uint64(rows),
                "frame": body.entries["frame"] + np.uint32(frames),
                "crc": zeroes,
                "payload_length": zeroes,
            }
        )
        self._rows.append(body.rows)
        self._replay(body)
        self._take_frames(body, rows)
        if self._rows.rows != self.timeline.rows:
            raise WireError("The index object's generations are not as long as its columns.")
        self._link = body.link
        self.segments += head.last_place - head.first_place + 1
        self.newest = head.newest
        self._check_position(head.newest)
        if self.keeper is not None:
            self.keeper.take_index(head, body)

    def _take_frames(self, body: IndexBody, rows: int) -> None:
        records = body.frames["records"].astype(np.uint64)
        ends = np.cumsum(records, dtype=np.uint64)
        known = {g.name: g.index for g in self.timeline.generations}
        parts = [known[part.name] for part in body.generations]
        edges = np.cumsum([part.records for part in body.generations], dtype=np.uint64)
        number = np.searchsorted(edges, ends - records, "right")
        if len(number) and int(number[-1]) >= len(parts):
            raise WireError("The index object has more frames than records.")
        none = np.zeros(len(ends), np.uint64)
        added = {
            "generation": np.array(parts or [0], np.uint32)[number],
            "first_row": ends - records + np.uint64(rows),
            "header_at": none,
            "header_length": none,
        }
        self._frames.append({**body.frames, **added})
        self._links.append({"byte": np.zeros(len(ends) * _LINK_BYTES, np.uint8)})

    def _replay(self, body: IndexBody) -> None:
        timeline = self.timeline
        for part in body.generations:
            if not timeline.generations or timeline.generations[-1].name != part.name:
                timeline.start_generation(part.name)
            timeline.replay(part.records, part.specials)
        self._hash = RecordHash(body.anchor, body.anchor_hash)
        self._hash.update(np.frombuffer(body.since_anchor, RECORD))

    def take(self, segment: Loaded[OpenedSegment]) -> None:
        """Add the next segment of the chain. Raises what DAMAGE names if it contradicts the
        rest."""
        if segment.made.key_problem is not None:
            raise segment.made.key_problem
        for frame in segment.made.frames:
            self._take_frame(segment.info, frame)
        self._check_position(segment.info)
        self.segments += 1
        self.newest = segment.info
        if self.keeper is not None:
            self.keeper.take_segment(segment.info)

    def _take_frame(self, info: SegmentInfo, frame: OpenedFrame) -> None:
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
        first_row = timeline.rows
        timeline.add(frame.records, frame.bodies, header.markers)
        self._store_frame(info, frame, first_row)
        if self.keeper is not None:
            self.keeper.take_frame(frame, self._hash)

    def _store_frame(self, info: SegmentInfo, frame: OpenedFrame, first_row: int) -> None:
        records, header = frame.records, frame.ref.header
        count = len(records)
        ends = np.cumsum(records["payload_length"], dtype=np.uint64)
        self._rows.append({name: records[name] for name in _ROW_COLUMNS})
        columns = {
            name: records[name] for name in _ENTRY_COLUMNS if name in (records.dtype.names or ())
        }
        columns["row"] = np.arange(first_row, first_row + count, dtype=np.uint64)
        columns["payload_at"] = ends - records["payload_length"]
        columns["frame"] = np.full(count, self._frames.rows, np.uint32)
        self._entries.append(columns)
        row = {
            "place": info.place,
            "generation": self.timeline.generations[-1].index,
            "first_row": first_row,
            "records": count,
            "payload_offset": frame.ref.payload_offset,
            "payload_sealed": frame.ref.payload_length,
            "payload_plain": header.payload_plain,
            "header_at": self._headers.rows,
            "header_length": header.length,
        }
        self._frames.append({name: np.array([value]) for name, value in row.items()})
        self._headers.append({"byte": np.frombuffer(frame.ref.header_bytes, np.uint8)})
        self._link = blake3(self._link + frame.ref.header_bytes).digest()
        self._links.append({"byte": np.frombuffer(self._link, np.uint8)})

    def _check_position(self, info: SegmentInfo) -> None:
        """A trailer states the position and the hash that its frames lead to, epoch segments
        too."""
        generations = self.timeline.generations
        name = generations[-1].name if generations else bytes(16)
        last = generations[-1].last_seq if generations else 0
        stated = (info.generation, info.last_seq, info.record_hash)
        if stated != (name, last, self._hash.digest() if generations else info.record_hash):
            raise WireError("Its trailer states another position than its frames lead to.")
