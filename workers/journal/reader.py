"""Opening a journal from the bucket and the tenant's key alone.

One pass over the chain: tails ahead in parallel, each segment checked against the one before,
indexes opened, the record hash followed across frames and segments, records kept as columns on
disk. The pass stops at the first damage; everything before it stays usable, nothing after it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from host_agent.wire.errors import ChecksumMismatch, WireError
from host_agent.wire.frame import FrameHeader
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity, chain_name
from host_agent.wire.segment import SegmentInfo
from workers.journal.chain import DAMAGE, ChainWalk, Loaded, damaged
from workers.journal.errors import JournalCut, JournalDamaged, NoSuchStream, PayloadDamaged
from workers.journal.opening import (
    KeyRing,
    OpenedFrame,
    OpenedSegment,
    SegmentOpener,
    check_payload,
)
from workers.journal.spool import ColumnSpool
from workers.journal.statements import Statement, read_statement
from workers.journal.timeline import Timeline
from workers.storage.port import ObjectStore

_RECORD_COLUMNS = {
    "time": "<u8",
    "offset": "<u8",
    "aux": "<u8",
    "length": "<u4",
    "crc": "<u4",
    "payload_length": "<u4",
    "payload_at": "<u4",
    "frame": "<u4",
    "disk": "<u2",
    "op": "u1",
    "flags": "u1",
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
class ReadOptions:
    """`spool_directory` holds temporary files (None: the system's); `progress` hears places
    done."""

    spool_directory: Path | None = None
    progress: Callable[[int], None] | None = None


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
        self._records = ColumnSpool(_RECORD_COLUMNS, spool)
        self._frames = ColumnSpool(_FRAME_COLUMNS, spool)
        self._headers = ColumnSpool({"byte": "u1"}, spool)
        self._hash = RecordHash()

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
        for spool in (self._records, self._frames, self._headers):
            spool.close()

    @property
    def rows(self) -> int:
        """Records of the whole chain."""
        return self._records.rows

    @property
    def frames(self) -> int:
        """Frames of the whole chain."""
        return self._frames.rows

    def column(self, name: str) -> NDArray[Any]:
        """A column of all records; row i is the chain's record i. See `_RECORD_COLUMNS`."""
        return self._records.column(name)

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
        """BLAKE3 of the clear headers of all frames up to `number`: they hold the record hashes."""
        end = int(self._frames.column("header_at")[number])
        end += int(self._frames.column("header_length")[number])
        return blake3(self._headers.column("byte")[:end].tobytes()).digest()

    def open_payload(self, frame: FrameInfo, sealed: bytes | memoryview) -> bytes:
        """The frame's data, authenticated and checked against the tap's CRCs; PayloadDamaged."""
        at = int(self._frames.column("header_at")[frame.number])
        length = int(self._frames.column("header_length")[frame.number])
        header_bytes = self._headers.column("byte")[at : at + length].tobytes()
        rows = slice(frame.first_row, frame.first_row + frame.records)
        generation = self.timeline.generations[frame.generation]
        try:
            header = FrameHeader.unpack(header_bytes)
            opener = self.keys.opener(generation.name)
            plain = opener.open_payload(header, header_bytes, sealed)
            columns = (
                self._records.column("crc")[rows],
                self._records.column("payload_length")[rows],
            )
            check_payload(plain, *columns, header.first_seq)
        except DAMAGE as error:
            name = chain_name(self.identity, frame.place)
            raise PayloadDamaged(
                frame.place, f"The data of {name} cannot be used: {error.message}"
            ) from error
        return plain

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

    def _store_frame(self, info: SegmentInfo, frame: OpenedFrame, first_row: int) -> None:
        records, header = frame.records, frame.ref.header
        count = len(records)
        ends = np.cumsum(records["payload_length"], dtype=np.uint64)
        columns = {
            name: records[name] for name in _RECORD_COLUMNS if name in (records.dtype.names or ())
        }
        columns["payload_at"] = ends - records["payload_length"]
        columns["frame"] = np.full(count, self._frames.rows, np.uint32)
        self._records.append(columns)
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

    def _check_position(self, info: SegmentInfo) -> None:
        """A trailer states the position and the hash that its frames lead to, epoch segments
        too."""
        generations = self.timeline.generations
        name = generations[-1].name if generations else bytes(16)
        last = generations[-1].last_seq if generations else 0
        stated = (info.generation, info.last_seq, info.record_hash)
        if stated != (name, last, self._hash.digest() if generations else info.record_hash):
            raise WireError("Its trailer states another position than its frames lead to.")


def open_journal(
    store: ObjectStore,
    identity: Identity,
    tenant_key: TenantKey,
    options: ReadOptions | None = None,
) -> Journal:
    """Read a stream's whole chain.

    Damage does not raise here: it is in the journal's `damage`, and moments before it can be
    chosen. Raises NoSuchStream; WrongKey, BadKeyFile or KeyObjectLost if nothing can be opened at
    all; StoreError.
    """
    options = options or ReadOptions()
    keys = KeyRing(store, identity, tenant_key)
    # Before the chain: what is stated now must be there when the chain is read.
    statement = read_statement(store, identity)
    journal = Journal(store, identity, keys, options.spool_directory)
    try:
        _read(journal, options)
        if journal.damage is not None and not journal.rows:
            raise journal.damage.__cause__ or journal.damage
        if not journal.segments:
            raise NoSuchStream(
                f"{store.label} holds no journal of {identity}.",
                hint="`holdfast restore list` shows what it holds.",
            )
        journal.statement = statement
        if journal.damage is None and statement is not None:
            journal.damage = _cut(journal, statement)
    except BaseException:
        journal.close()
        raise
    return journal


def _read(journal: Journal, options: ReadOptions) -> None:
    opener = SegmentOpener(journal.store, journal.identity, journal.keys)
    walk = ChainWalk(journal.store, journal.identity, opener)
    for segment in walk:
        try:
            journal.take(segment)
        except (JournalDamaged, *DAMAGE) as error:
            journal.damage = damaged(journal.identity, segment.info.place, error)
            journal.damage.__cause__ = error
            return
        if options.progress is not None:
            options.progress(segment.info.place)
    journal.damage = walk.damage


def _cut(journal: Journal, statement: Statement) -> JournalDamaged | None:
    generations = journal.timeline.generations
    newest = generations[-1] if generations else None
    if statement.seq == 0 or (
        newest is not None
        and newest.hex == statement.generation
        and statement.seq <= newest.last_seq
    ):
        return None
    older = [g for g in generations[:-1] if g.hex == statement.generation]
    if older and statement.seq <= older[0].last_seq:
        return None
    place = journal.newest.place if journal.newest else 0
    return JournalCut(
        place + 1,
        f"The journal of {journal.identity} ends at place {place}, but sequence {statement.seq}"
        f" of generation {statement.generation} was stated to be stored:"
        " its newest segments were lost.",
    )
