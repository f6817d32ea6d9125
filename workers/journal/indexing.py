"""Makes index objects: of each whole block of places, what nothing later in it hides.

One pass over the chain, by the index objects that are there and by segments where they are not. An
object is created if absent and never changed; who is ended between two of them goes on where the
next is missing. A block whose end lies inside a sync gets none: its segments are read instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.errors import LimitExceeded
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import TenantKey
from host_agent.wire.limits import DISK_BYTES_MAX
from host_agent.wire.names import Identity, index_name
from host_agent.wire.record import RECORD, Op, Records, State
from host_agent.wire.segment import SegmentInfo
from workers.journal import indexfile
from workers.journal.errors import JournalDamaged
from workers.journal.indexfile import (
    ENTRIES,
    FRAMES,
    ROWS,
    GenerationPart,
    IndexBody,
    IndexHead,
    build_index,
)
from workers.journal.opening import OpenedFrame
from workers.journal.paint import paint
from workers.journal.pitmap import NumberTables
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.timeline import specials_of
from workers.storage.failpoints import failpoint
from workers.storage.port import Created, ObjectStore

#: More would take over 1 GiB while they are sorted; lower levels stand for such a block.
ENTRIES_MAX = 8 * 1024 * 1024

_SHIFT = np.uint64(DISK_BYTES_MAX.bit_length() - 1)
_WRITES = np.zeros(256, bool)
_WRITES[[Op.WRITE, Op.SYNC, Op.ZERO, Op.TRIM, Op.SYNC_ZERO]] = True
_DATA = np.zeros(256, bool)
_DATA[[Op.WRITE, Op.SYNC]] = True
_SYNC = np.zeros(256, bool)
_SYNC[[Op.SYNC, Op.SYNC_ZERO]] = True


@dataclass
class Written:
    """What a run made. `left_out`: blocks that end inside a sync or are too large for one
    object."""

    made: list[str] = field(default_factory=list)
    there: int = 0
    left_out: int = 0
    bytes: int = 0
    damage: JournalDamaged | None = None

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "made": self.made,
            "there": self.there,
            "left_out": self.left_out,
            "bytes": self.bytes,
            "problems": [self.damage.as_dict()] if self.damage else [],
        }


def write_indexes(
    store: ObjectStore,
    identity: Identity,
    tenant_key: TenantKey,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Make the index objects that a stream lacks; `progress` hears places done.

    Damage of the chain is in the result; what lies before it is indexed. Raises what `open_journal`
    raises.
    """
    written = Written()

    def keeper(journal: Journal) -> _Writer:
        written.there = 0
        return _Writer(journal, written)

    options = ReadOptions(progress=progress, use_index=True, keeper=keeper)
    with open_journal(store, identity, tenant_key, options) as journal:
        written.damage = journal.damage
    return written


@dataclass
class _Block:
    """A block of one level in the making: where it begins in the journal, and what it keeps."""

    level: int
    place: int = 1
    row: int = 0
    frame: int = 0
    entry: int = 0
    previous: bytes = bytes(32)
    parts: list[GenerationPart] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)

    def add(self, part: GenerationPart) -> None:
        """Records that follow."""
        if self.parts and self.parts[-1].name == part.name:
            last = self.parts[-1]
            last.specials.extend(part.specials)
            self.parts[-1] = GenerationPart(last.name, last.records + part.records, last.specials)
        else:
            self.parts.append(GenerationPart(part.name, part.records, list(part.specials)))


class _Writer:
    """Hears of all that a journal takes, and writes an object where a block ends."""

    def __init__(self, journal: Journal, written: Written) -> None:
        self._journal = journal
        self._written = written
        counts = (journal.rows, journal.frames, journal.entry_count)
        previous = journal.newest.hash if journal.newest else bytes(32)
        self._blocks = [
            _Block(level, journal.first_place, *counts, previous)
            for level in range(1, indexfile.LEVELS + 1)
        ]
        self._generation = b""
        self._since: Records = np.empty(0, RECORD)
        if journal.layers is not None:
            self._generation = journal.timeline.generations[-1].name
            self._since = np.frombuffer(journal.layers.body.since_anchor, RECORD)

    def take_frame(self, frame: OpenedFrame, running: RecordHash) -> None:
        """Keep what a timeline needs of it, and its records if they follow the last anchor."""
        header = frame.ref.header
        if header.generation != self._generation:
            self._generation, self._since = header.generation, np.empty(0, RECORD)
        since = np.concatenate([self._since, frame.records])
        self._since = since[since["seq"] > running.anchor]
        specials = specials_of(frame.records, frame.bodies, header.markers)
        for block in self._blocks:
            block.add(GenerationPart(header.generation, header.records, specials))

    def take_segment(self, info: SegmentInfo) -> None:
        """Write what ends here."""
        self._blocks[0].hashes.append(info.hash.hex())
        for block in self._blocks:
            if info.place % indexfile.SPAN**block.level == 0:
                self._write(block, info)
                self._begin(block, info)

    def take_index(self, head: IndexHead, body: IndexBody) -> None:
        """Go on behind it; it may be the last that an object of the next level waited for."""
        self._written.there += 1
        if body.generations:
            self._generation = body.generations[-1].name
            self._since = np.frombuffer(body.since_anchor, RECORD)
        for block in self._blocks:
            if block.level > head.level:
                for part in body.generations:
                    block.add(part)
            if head.last_place % indexfile.SPAN**block.level == 0:
                if block.level > head.level:
                    self._write(block, head.newest)
                self._begin(block, head.newest)

    def _begin(self, block: _Block, info: SegmentInfo) -> None:
        journal = self._journal
        counts = (journal.rows, journal.frames, journal.entry_count)
        self._blocks[block.level - 1] = _Block(block.level, info.place + 1, *counts, info.hash)

    def _write(self, block: _Block, info: SegmentInfo) -> None:
        """Create the block's object, unless it is there."""
        if (block.place - 1) % indexfile.SPAN**block.level:
            return  # its beginning lies in layers
        too_large = self._journal.entry_count - block.entry > ENTRIES_MAX
        if info.state != State.RECORDING or too_large:
            self._written.left_out += 1
            return
        journal, number = self._journal, info.place // indexfile.SPAN**block.level
        identity, keys = journal.identity, {}
        for part in [*block.parts, GenerationPart(info.generation, 0, [])]:
            keys[part.name.hex()] = journal.keys.key_object(part.name).decode()
        hashes = block.hashes if block.level == 1 else []
        head = IndexHead(block.level, number, identity.hash, block.previous, info, keys, hashes)
        try:
            data_key = journal.keys.data_key(info.generation)
            data = build_index(head, self._body(block), identity, data_key)
        except LimitExceeded:
            self._written.left_out += 1
            return
        name = index_name(identity, block.level, number)
        failpoint("index_after_build_before_create")
        if journal.store.put_if_absent(name, data) is Created.CREATED:
            self._written.made.append(name)
            self._written.bytes += len(data)
        failpoint("index_after_create_before_next")

    def _body(self, block: _Block) -> IndexBody:
        journal = self._journal
        rows = {name: journal.column(name)[block.row :] for name in ROWS}
        frames = {name: journal.frame_column(name)[block.frame :] for name in FRAMES}
        running = journal.record_hash
        return IndexBody(
            block.parts,
            rows,
            frames,
            _visible(journal, block),
            running.anchor,
            running.anchor_hash,
            self._since.tobytes(),
            journal.link,
        )


def _visible(journal: Journal, block: _Block) -> dict[str, NDArray[Any]]:
    """The block's entries without what later ones of the same generation and disk hide."""
    columns = {name: journal.column(name)[block.entry :] for name in ENTRIES}
    op = columns["op"]
    kept = np.flatnonzero((op >= Op.BEGIN) | (op == Op.RESIZE))
    found = _paint_writes(journal, columns)
    out: dict[str, NDArray[Any]] = {}
    for name in ENTRIES:
        out[name] = np.concatenate([columns[name][kept], found[name].astype(columns[name].dtype)])
    order = np.lexsort((out["offset"], out["row"]))
    out = {name: column[order] for name, column in out.items()}
    out["row"] = out["row"] - np.uint64(block.row)
    out["frame"] = out["frame"] - np.uint32(block.frame)
    return out


def _paint_writes(journal: Journal, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What is visible of the writes, by (order, sequence) within a generation and a disk."""
    timeline = journal.timeline
    index = np.flatnonzero(_WRITES[columns["op"]])
    row = columns["row"][index].astype(np.uint64)
    disks = np.arange(len(timeline.disk_names) + 1, dtype=np.int32)
    slot = NumberTables(timeline.changes, disks).slots(row, columns["disk"][index])
    starts = np.array([g.start_row for g in timeline.generations] or [0], np.int64)
    firsts = np.array([g.first_row for g in timeline.generations] or [0], np.int64)
    generation = np.searchsorted(starts, row.astype(np.int64), "right") - 1
    seq = (row.astype(np.int64) - firsts[generation] + 1).astype(np.uint64)
    key = np.where(_SYNC[columns["op"][index]], columns["aux"][index], seq)
    # Generations and disks lie apart in one address space: nothing hides another's.
    _, group = np.unique(np.stack([generation, slot]), axis=1, return_inverse=True)
    start = columns["offset"][index] + (group.reshape(-1).astype(np.uint64) << _SHIFT)
    end = start + columns["length"][index]
    order = np.argsort(key, kind="stable")
    painted = paint(start[order], end[order])
    winner = order[painted.winner]
    found = {name: columns[name][index[winner]] for name in ENTRIES}
    cut = painted.start - start[winner]
    found["offset"] = found["offset"] + cut
    found["length"] = (painted.end - painted.start).astype(np.uint32)
    data = _DATA[found["op"]]
    found["payload_at"] = found["payload_at"] + np.where(data, cut, 0).astype(np.uint32)
    return found
