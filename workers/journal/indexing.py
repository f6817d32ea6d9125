"""Makes index objects: of each whole block of places, what nothing later in it hides.

One pass over the chain, by the index objects that are there and by segments where they are not. An
object is created if absent and never changed; who is ended between two of them goes on where the
next is missing. A block whose end lies inside a sync gets none: its segments are read instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from host_agent.wire.errors import LimitExceeded
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import JournalKey
from host_agent.wire.limits import DISK_BYTES_MAX, MIB
from host_agent.wire.names import Identity, index_name
from host_agent.wire.record import RECORD, Op, Records, State
from host_agent.wire.segment import SegmentInfo
from workers.journal import indexfile
from workers.journal.blocks import IndexBlock
from workers.journal.columns import ENTRIES, FRAMES, ROWS, Columns, pack
from workers.journal.errors import JournalDamaged
from workers.journal.indexfile import (
    GenerationPart,
    IndexBuilder,
    IndexHead,
    Kind,
    Section,
    Summary,
)
from workers.journal.opening import OpenedFrame
from workers.journal.paint import paint
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.runs import SegmentRun
from workers.journal.sources import NumberTables
from workers.journal.timeline import specials_of
from workers.storage.failpoints import failpoint
from workers.storage.port import Created, ObjectStore

#: Writes of segments that a block may have: more would take over 1 GiB while they are sorted.
ENTRIES_MAX = 8 * 1024 * 1024

#: Writes that are painted together.
_PART_WRITES = 256 * 1024

#: An address that is cut at: blocks of a disk, so that few writes are cut in two.
_GRAIN = MIB

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
    key: JournalKey,
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
    with open_journal(store, identity, key, options) as journal:
        written.damage = journal.damage
    return written


@dataclass
class _Block:
    """A block of one level in the making: where it begins in the journal, and what it keeps."""

    level: int
    place: int = 1
    row: int = 0
    frame: int = 0
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
        counts = (journal.rows, journal.frames)
        previous = journal.newest.hash if journal.newest else bytes(32)
        self._blocks = [
            _Block(level, journal.first_place, *counts, previous)
            for level in range(1, indexfile.LEVELS + 1)
        ]
        self._generation = b""
        self._since: Records | None = np.empty(0, RECORD)
        if journal.layers is not None:
            self._generation = journal.timeline.generations[-1].name
            self._since = np.frombuffer(journal.layers.body.since_anchor, RECORD)

    def take_frame(self, frame: OpenedFrame, running: RecordHash) -> None:
        """Keep what a timeline needs of it, and its records if they follow the last anchor."""
        header = frame.ref.header
        if header.generation != self._generation:
            self._generation, self._since = header.generation, np.empty(0, RECORD)
        since = np.concatenate([self._since_anchor(), frame.records])
        self._since = since[since["seq"] > running.anchor]
        specials = specials_of(frame.records, frame.bodies)
        for block in self._blocks:
            block.add(GenerationPart(header.generation, header.records, specials))

    def _since_anchor(self) -> Records:
        if self._since is None:
            self._since = self._journal.blocks[-1].since_anchor()
        return self._since

    def take_segment(self, info: SegmentInfo) -> None:
        """Write what ends here."""
        self._blocks[0].hashes.append(info.hash.hex())
        for block in self._blocks:
            if info.place % indexfile.SPAN**block.level == 0:
                self._write(block, info)
                self._begin(block, info)

    def take_index(self, block: IndexBlock) -> None:
        """Go on behind it; it may be the last that an object of the next level waited for."""
        self._written.there += 1
        head = block.head
        if block.summary.generations:
            self._generation = block.summary.generations[-1].name
            self._since = None
        for own in self._blocks:
            if own.level > head.level:
                for part in block.summary.generations:
                    own.add(part)
            if head.last_place % indexfile.SPAN**own.level == 0:
                if own.level > head.level:
                    self._write(own, head.newest)
                self._begin(own, head.newest)

    def _begin(self, block: _Block, info: SegmentInfo) -> None:
        counts = (self._journal.rows, self._journal.frames)
        self._blocks[block.level - 1] = _Block(block.level, info.place + 1, *counts, info.hash)

    def _write(self, block: _Block, info: SegmentInfo) -> None:
        """Create the block's object, unless it is there."""
        if (block.place - 1) % indexfile.SPAN**block.level:
            return  # its beginning lies in layers
        if info.state != State.RECORDING:
            self._written.left_out += 1
            return
        journal, number = self._journal, info.place // indexfile.SPAN**block.level
        identity, keys = journal.identity, {}
        for part in [*block.parts, GenerationPart(info.generation, 0, [])]:
            keys[part.name.hex()] = journal.keys.key_copy(part.name)
        hashes = block.hashes if block.level == 1 else []
        head = IndexHead(block.level, number, identity.hash, block.previous, info, keys, hashes)
        try:
            builder = IndexBuilder(block.level, number, journal.keys.data_key(info.generation))
            data = builder.finish(head, self._content(block, builder), identity)
        except LimitExceeded:
            self._written.left_out += 1
            return
        name = index_name(identity, block.level, number)
        failpoint("index_after_build_before_create")
        if journal.store.put_if_absent(name, data) is Created.CREATED:
            self._written.made.append(name)
            self._written.bytes += len(data)
        failpoint("index_after_create_before_next")

    def _content(self, block: _Block, builder: IndexBuilder) -> Summary:
        """Add all sections; what is left is the summary."""
        journal = self._journal
        running = journal.record_hash()
        marks = journal.marks_between(block.row, journal.rows)
        builder.add(Section(Kind.MARKS, len(marks.ids), 0, 0), marks.packed())
        _add_rows(journal, block, builder)
        _add_frames(journal, block, builder)
        since = self._since_anchor()
        builder.add(Section(Kind.ANCHOR, len(since), 0, 0), since.tobytes())
        _Entries(journal, block).add_to(builder)
        return Summary(
            block.parts,
            journal.frames - block.frame,
            running.anchor,
            running.anchor_hash,
            journal.link,
            builder.sections,
        )


def _add_rows(journal: Journal, block: _Block, builder: IndexBuilder) -> None:
    for first in range(block.row, journal.rows, indexfile.SECTION_ROWS):
        end = min(journal.rows, first + indexfile.SECTION_ROWS)
        time, flags = journal.times(first, end)
        section = Section(Kind.ROWS, end - first, 0, 0, low=first - block.row)
        builder.add(section, pack({"time": time, "flags": flags}, ROWS))


def _add_frames(journal: Journal, block: _Block, builder: IndexBuilder) -> None:
    for first in range(block.frame, journal.frames, indexfile.SECTION_FRAMES):
        end = min(journal.frames, first + indexfile.SECTION_FRAMES)
        columns = journal.frame_range(first, end)
        row = int(columns["first_row"][0]) - block.row
        section = Section(Kind.FRAMES, end - first, 0, 0, low=first - block.frame, high=row)
        builder.add(section, pack(columns, FRAMES))


class _Entries:
    """The block's writes without what later ones of the same generation and disk hide, by disk
    number and address."""

    def __init__(self, journal: Journal, block: _Block) -> None:
        self._journal = journal
        self._block = block
        timeline = journal.timeline
        self._runs = [
            run for run in journal.runs if run.first_row + run.rows > block.row and run.rows
        ]
        disks = np.arange(len(timeline.disk_names) + 1, dtype=np.int32)
        self._tables = NumberTables(timeline.changes, disks)
        self._starts = np.array([g.start_row for g in timeline.generations] or [0], np.int64)
        self._firsts = np.array([g.first_row for g in timeline.generations] or [0], np.int64)
        self._opened = self._sort_opened()

    def _sort_opened(self) -> Columns:
        """The writes of segments, by disk number and address; equal ones by row."""
        parts = []
        for run in self._runs:
            if isinstance(run, SegmentRun):
                first, end = run.entry_range()
                first += max(0, self._block.row - run.first_row)
                if end - first > ENTRIES_MAX:
                    raise LimitExceeded("A block has more writes than are sorted at once.")
                parts.append(
                    {name: self._journal.column(name)[first:end] for name in (*ENTRIES, "disk")}
                )
        parts = parts or [{name: np.empty(0, np.uint64) for name in (*ENTRIES, "disk")}]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        index = np.flatnonzero(_WRITES[found["op"].astype(np.uint8)])
        order = index[np.lexsort((found["offset"][index], found["disk"][index]))]
        return {name: column[order] for name, column in found.items()}

    def add_to(self, builder: IndexBuilder) -> None:
        """Paint part after part, and add what is visible; LimitExceeded."""
        visible = 0
        by_disk: dict[int, list[Columns]] = {}
        for disk, low, high in self._parts():
            painted = self._paint(disk, low, high)
            visible += len(painted["row"])
            if visible > ENTRIES_MAX:
                raise LimitExceeded("A block has more writes than an index object holds.")
            by_disk.setdefault(disk, []).append(painted)
        for disk, parts in by_disk.items():
            # The same content must give the same bytes, whatever it was painted from.
            whole = _mended({name: np.concatenate([p[name] for p in parts]) for name in ENTRIES})
            for at in range(0, len(whole["row"]), indexfile.SECTION_ENTRIES):
                cut = {n: c[at : at + indexfile.SECTION_ENTRIES] for n, c in whole.items()}
                order = np.lexsort((cut["offset"], cut["row"]))
                cut = {name: column[order] for name, column in cut.items()}
                low = int(cut["offset"].min())
                high = int((cut["offset"] + cut["length"]).max())
                section = Section(Kind.ENTRIES, len(order), 0, 0, disk, low, high)
                builder.add(section, pack(cut, ENTRIES))

    def _parts(self) -> list[tuple[int, int, int]]:
        """(disk number, first byte, end): about as many writes in each."""
        starts: dict[int, list[tuple[int, int]]] = {}
        for run in self._runs:
            if isinstance(run, IndexBlock):
                for _, section in run.sections:
                    starts.setdefault(section.disk, []).append((section.low, section.count))
        numbers, firsts = np.unique(self._opened["disk"], return_index=True)
        edges = [*firsts.tolist(), len(self._opened["disk"])]
        for disk, (first, end) in zip(numbers.tolist(), pairwise(edges), strict=True):
            for at in range(first, end, indexfile.SECTION_ENTRIES):
                count = min(end, at + indexfile.SECTION_ENTRIES) - at
                starts.setdefault(int(disk), []).append((int(self._opened["offset"][at]), count))
        parts = []
        for disk in sorted(starts):
            low, writes = 0, 0
            for start, count in sorted(starts[disk]):
                cut = start // _GRAIN * _GRAIN
                if writes + count > _PART_WRITES and cut > low:
                    parts.append((disk, low, cut))
                    low, writes = cut, 0
                writes += count
            parts.append((disk, low, DISK_BYTES_MAX))
        return parts

    def _paint(self, disk: int, low: int, high: int) -> Columns:
        """What is visible of a part, by address: by (order, sequence) within a generation and a
        disk."""
        parts = [self._opened_part(disk, low, high)]
        for run in self._runs:
            if isinstance(run, IndexBlock):
                parts += run.entries([disk], low, high)
        names = [*ENTRIES, "disk"]
        found = {name: np.concatenate([part[name] for part in parts]) for name in names}
        end = found["offset"] + found["length"]
        keep = (found["offset"] < np.uint64(high)) & (end > np.uint64(low))
        keep &= _WRITES[found["op"].astype(np.uint8)]
        order = np.flatnonzero(keep)
        order = order[np.argsort(found["row"][order], kind="stable")]
        found = {name: column[order].astype(np.uint64) for name, column in found.items()}
        return self._visible(found, low, high)

    def _visible(self, found: Columns, low: int, high: int) -> Columns:
        row, op = found["row"], found["op"].astype(np.uint8)
        slot = self._tables.slots(row, found["disk"].astype(np.uint16))
        generation = np.searchsorted(self._starts, row.astype(np.int64), "right") - 1
        seq = (row.astype(np.int64) - self._firsts[generation] + 1).astype(np.uint64)
        key = np.where(_SYNC[op], found["aux"], seq)
        # Generations and disks lie apart in one address space: nothing hides another's.
        _, group = np.unique(np.stack([generation, slot]), axis=1, return_inverse=True)
        base = group.reshape(-1).astype(np.uint64) << _SHIFT
        start = np.maximum(found["offset"], np.uint64(low)) + base
        end = np.minimum(found["offset"] + found["length"], np.uint64(high)) + base
        order = np.argsort(key, kind="stable")
        painted = paint(start[order], end[order])
        winner = order[painted.winner]
        out = {name: found[name][winner] for name in ENTRIES}
        cut = painted.start - base[winner] - out["offset"]
        out["offset"] = out["offset"] + cut
        out["length"] = painted.end - painted.start
        data = _DATA[out["op"].astype(np.uint8)]
        out["payload_at"] = out["payload_at"] + np.where(data, cut, 0).astype(np.uint64)
        out["row"] = out["row"] - np.uint64(self._block.row)
        out["frame"] = out["frame"] - np.uint64(self._block.frame)
        return out

    def _opened_part(self, disk: int, low: int, high: int) -> Columns:
        """Writes of segments that may touch a part: those that begin in it, and before it as far as
        the longest reaches."""
        own = self._opened["disk"]
        first, end = np.searchsorted(own, [disk, disk + 1]).tolist()
        offset = self._opened["offset"][first:end].astype(np.uint64)
        length = self._opened["length"][first:end]
        reach = int(length.max()) if len(length) else 0
        ends = np.array([max(0, low - reach), high], np.uint64)
        a, b = np.searchsorted(offset, ends).tolist()
        return {name: column[first + a : first + b] for name, column in self._opened.items()}


def _mended(found: Columns) -> Columns:
    """Pieces of a record that were cut where parts meet made whole again, by address."""
    order = np.lexsort((found["offset"], found["row"]))
    found = {name: column[order] for name, column in found.items()}
    end = found["offset"] + found["length"]
    goes_on = np.zeros(len(order), bool)
    goes_on[1:] = (found["row"][1:] == found["row"][:-1]) & (found["offset"][1:] == end[:-1])
    first = np.flatnonzero(~goes_on)
    last = np.append(first[1:], len(order)) - 1
    out = {name: column[first] for name, column in found.items()}
    out["length"] = (end[last] - out["offset"]).astype(found["length"].dtype)
    order = np.lexsort((out["row"], out["offset"]))
    return {name: column[order] for name, column in out.items()}
