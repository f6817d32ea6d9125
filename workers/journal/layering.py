"""The layers of one fold: which there will be, what each holds, and the list that names them.

A layer ends at each checkpoint that is kept and at the place up to which is folded. One that is
much smaller than what comes over it is made part of the new one, so that few lie over each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from host_agent.wire.errors import WireError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity, layers_name, layers_prefix, number_of, part_name
from host_agent.wire.record import RECORD, Records
from host_agent.wire.segment import SegmentInfo, pack_trailer
from workers.journal import retention
from workers.journal.blocks import IndexBlock
from workers.journal.content import ContentTools, LayerContent, MadeParts, Visible
from workers.journal.errors import HandedOver, LayerDamaged, UnknownBase
from workers.journal.layerfile import (
    Built,
    GenerationEnd,
    LayerEnd,
    LayerRef,
    ListBody,
    ListClear,
    Ref,
    Sealer,
    build_layer_index,
    build_list,
    parse_list,
)
from workers.journal.opening import OpenedFrame
from workers.journal.pins import Pins
from workers.journal.pitmap import CELL_WRITES, paint_cell
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.journal.sources import DISK_SHIFT, NO_FRAME, Lineage, Sources, Stretch, lineage
from workers.journal.timeline import Checkpoint
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

Put = Callable[[str, bytes], str]


@dataclass
class _Layer:
    """A layer of the list to be. `row`: of its end, in the journal."""

    row: int
    ref: LayerRef
    end: LayerEnd
    over: _Layer | None
    is_kept: bool


@dataclass(frozen=True)
class _End:
    """Where a new layer ends."""

    row: int
    generation: int
    seq: int
    checkpoints: list[Checkpoint]


class Layering:
    """The layers that stand for a journal up to its end. `steps`, then `clear` and `finished`."""

    def __init__(
        self,
        journal: Journal,
        number: int,
        pins: Pins,
        reopen: Callable[[int], Journal],
        tools: ContentTools,
    ) -> None:
        """`number` is that of the list; `reopen` opens the journal up to a place."""
        self._journal = journal
        self._number = number
        self._pins = pins
        self._reopen = reopen
        self._tools = tools
        newest = journal.newest
        assert newest is not None
        self._newest: SegmentInfo = newest
        self._sealer = Sealer(
            journal.identity, newest.generation, journal.keys.data_key(newest.generation)
        )
        self._layers = self._existing()

    def _existing(self) -> list[_Layer]:
        """The layers that there are, with the checkpoints that are still kept."""
        found: list[_Layer] = []
        layers = self._journal.layers
        if layers is None:
            return found
        for row, (ref, end) in enumerate(zip(layers.clear.layers, layers.body.ends, strict=True)):
            marks = [m for m in end.checkpoints if self._pins.keeps(_checkpoint(m))]
            left = LayerEnd(end.time, end.disks, end.unreadable, marks)
            over = found[ref.over - 1] if ref.over else None
            found.append(_Layer(row, ref, left, over, bool(marks)))
        return found

    def steps(self, put: Put) -> Iterator[str]:
        """Make all new layers' objects; yields what `put` returns for each."""
        for end in self._ends():
            journal = self._journal
            if not journal.is_open(end.row) and end.row != journal.rows - 1:
                journal = self._reopen(journal.frame(journal.frame_of(end.row)).place)
            try:
                yield from self._make(journal, end, put)
            except UnknownBase:
                if not end.checkpoints:
                    raise
                # It could not be restored before either: nothing is kept of it.
            finally:
                if journal is not self._journal:
                    journal.close()
        self._forget_unused()

    def _ends(self) -> list[_End]:
        """Kept checkpoints that are not in layers yet, by their positions, then the end."""
        timeline = self._journal.timeline
        if any(generation.handover for generation in timeline.generations):
            raise HandedOver(
                "A disk of this stream was handed over from another stream: it cannot be folded.",
                hint="Its history stays as it is.",
            )
        last = self._journal.rows - 1
        by_row: dict[int, list[Checkpoint]] = {}
        for checkpoint in timeline.checkpoints():
            generation = timeline.generations[checkpoint.generation]
            row = generation.row(checkpoint.seq)
            is_new = row >= len(timeline.layers) and checkpoint.seq <= generation.last_seq
            if is_new and self._pins.keeps(checkpoint):
                by_row.setdefault(row, []).append(checkpoint)
        by_row.setdefault(last, [])
        return [_End(row, *timeline.position(row), marks) for row, marks in sorted(by_row.items())]

    # -- one layer

    def _make(self, journal: Journal, end: _End, put: Put) -> Iterator[str]:
        line, over, merged = self._plan(journal, end)
        sizes = journal.timeline.disks_at(end.row)
        refs: tuple[list[Ref], list[Ref]] = ([], [])
        with LayerContent(journal, self._tools) as content:
            covered = 0
            for visible, bytes_covered in self._visible(journal, line, (sizes, end.row)):
                covered += bytes_covered
                content.take(visible if over is not None else visible.only(visible.is_data))
            if over is None and not line.is_whole and covered != sum(sizes.values()):
                raise UnknownBase(
                    f"Generation {line.root} continues one that is not in the journal, and some"
                    " ranges were not read since: it cannot be folded.",
                    hint="A sync of the whole disk ends this; `holdfast-agent sync` forces one.",
                )
            content.deal()
            made = MadeParts()
            for part in content.parts(self._sealer):
                made.add(part)
                yield self._put(put, part.built, refs[1])
            for index in content.indexes(made):
                yield self._put(put, build_layer_index(index, self._sealer), refs[0])
            self._add(journal, end, over, (refs, content.data_bytes))
        self._layers = [layer for layer in self._layers if layer not in merged]

    def _put(self, put: Put, built: Built, refs: list[Ref]) -> str:
        short = f"{self._number:016x}/{built.hex}"
        refs.append((short, len(built.data)))
        return put(part_name(self._journal.identity, short), built.data)

    def _plan(self, journal: Journal, end: _End) -> tuple[Lineage, _Layer | None, list[_Layer]]:
        """What the layer holds, what it stands over, and which layers become part of it."""
        timeline = journal.timeline
        name = timeline.generations[end.generation].hex
        line = lineage(journal, Point(end.generation, name, end.seq, end.row, 0, None, None))
        under = [layer for layer in self._layers if _holds(line, layer.row)]
        if not under:
            return line, None, []
        over: _Layer | None = under[-1]
        merged: list[_Layer] = []
        if over is not None and over.row < len(timeline.layers):
            merged = self._mergeable(journal, under)
            over = under[-1 - len(merged)] if len(merged) < len(under) else None
        if over is None:
            return line, None, merged
        return replace(line, stretches=_after(line.stretches, over.row)), over, merged

    def _mergeable(self, journal: Journal, under: list[_Layer]) -> list[_Layer]:
        free: list[_Layer] = []
        for layer in reversed(under):
            used = any(other.over is layer for other in self._layers if other not in free)
            if layer.is_kept or used:
                break
            free.append(layer)
        first = journal.layers.frames if journal.layers is not None else 0
        fresh = 0
        if first < journal.frames:
            columns = journal.frame_range(first, journal.frames)
            fresh = int(columns["payload_plain"].sum(dtype=np.uint64))
        return free[: retention.layers_to_merge([layer.ref.bytes for layer in free], fresh)]

    def _visible(
        self, journal: Journal, line: Lineage, where: tuple[dict[int, int], int]
    ) -> Iterator[tuple[Visible, int]]:
        """What the line left, by address, and how many bytes of it there are."""
        sizes, row = where
        numbers = np.array([_numbers(journal, row)[d] for d in sorted(sizes)] or [0], np.uint16)
        sources = Sources(journal, line, sizes, row)
        try:
            bounds = sources.cut(CELL_WRITES)
            for number in range(len(bounds) - 1):
                columns = sources.cell(number)
                painted = paint_cell(columns, bounds[number], bounds[number + 1])
                start, frame = painted.start, columns["frame"][painted.winner]
                slot = start >> np.uint64(DISK_SHIFT)
                length = painted.end - start
                at = start.astype(np.uint32) + columns["base"][painted.winner]
                offset = start - (slot << np.uint64(DISK_SHIFT))
                is_data = frame != NO_FRAME
                yield (
                    Visible(numbers[slot.astype(np.int64)], offset, length, is_data, frame, at),
                    int(length.sum(dtype=np.uint64)),
                )
        finally:
            sources.close()

    def _add(
        self,
        journal: Journal,
        end: _End,
        over: _Layer | None,
        made: tuple[tuple[list[Ref], list[Ref]], int],
    ) -> None:
        (indexes, parts), data_bytes = made
        timeline = journal.timeline
        generation = timeline.generations[end.generation]
        frame = journal.frame(journal.frame_of(end.row))
        ref = LayerRef(
            0, generation.hex, end.seq, frame.place, self._newest.generation.hex(), data_bytes,
            indexes, parts,
        )  # fmt: skip
        past = [s for s in generation.syncs if s.end is not None and s.end <= end.seq]
        sizes, numbers = timeline.disks_at(end.row), _numbers(journal, end.row)
        disks = [(numbers[disk], timeline.disk_names[disk], sizes[disk]) for disk in sorted(sizes)]
        marks = [(c.id, c.time, c.kind, c.scope, c.tag) for c in end.checkpoints]
        unreadable = list(past[-1].unreadable) if past else []
        described = LayerEnd(journal.time(end.row), disks, unreadable, marks)
        self._layers.append(_Layer(end.row, ref, described, over, bool(marks)))

    def _forget_unused(self) -> None:
        """Layers of branches that nothing keeps any more."""
        needed: list[_Layer] = []
        for layer in self._layers:
            if layer.is_kept or layer is self._layers[-1]:
                below: _Layer | None = layer
                while below is not None and below not in needed:
                    needed.append(below)
                    below = below.over
        self._layers = [layer for layer in self._layers if layer in needed]

    # -- the list

    def clear(self) -> ListClear:
        """The clear part of the list, after `steps`."""
        keys = self._journal.keys
        refs = []
        for layer in self._layers:
            over = self._layers.index(layer.over) + 1 if layer.over is not None else 0
            refs.append(
                LayerRef(
                    over, layer.ref.generation, layer.ref.seq, layer.ref.place, layer.ref.seal,
                    layer.ref.bytes, layer.ref.indexes, layer.ref.parts,
                )
            )  # fmt: skip
        names = {ref.seal for ref in refs} | {self._newest.generation.hex()}
        objects = {name: keys.key_copy(bytes.fromhex(name)) for name in sorted(names)}
        return ListClear(self._number, pack_trailer(self._newest).hex(), objects, refs)

    def finished(self) -> tuple[str, bytes]:
        """The list's name and bytes."""
        journal = self._journal
        generations = [
            GenerationEnd(g.name, g.predecessor, g.last_seq) for g in journal.timeline.generations
        ]
        running = journal.record_hash()
        anchor = journal.keeper
        assert isinstance(anchor, AnchorKeeper)
        body = ListBody(
            generations,
            list(journal.timeline.disk_names),
            [layer.end for layer in self._layers],
            running.anchor,
            running.anchor_hash,
            anchor.since().tobytes(),
            journal.link,
        )
        name = layers_name(journal.identity, self._number)
        return name, build_list(self.clear(), body, self._sealer)


class AnchorKeeper:
    """Keeps the records after the newest anchor of the record hash: a Keeper of a journal."""

    def __init__(self, journal: Journal) -> None:
        self._generation = b""
        self._since: Records | None = np.empty(0, RECORD)
        self._block: IndexBlock | None = None
        if journal.layers is not None:
            self._generation = journal.timeline.generations[-1].name
            self._since = np.frombuffer(journal.layers.body.since_anchor, RECORD)

    def take_frame(self, frame: OpenedFrame, running: RecordHash) -> None:
        """The next frame."""
        if frame.ref.header.generation != self._generation:
            self._generation, self._since = frame.ref.header.generation, np.empty(0, RECORD)
        since = np.concatenate([self.since(), frame.records])
        self._since = since[since["seq"] > running.anchor]

    def take_segment(self, info: SegmentInfo) -> None:
        """Nothing more."""

    def take_index(self, block: IndexBlock) -> None:
        """Its end is asked for when it is needed."""
        if block.summary.generations:
            self._generation = block.summary.generations[-1].name
            self._since, self._block = None, block

    def since(self) -> Records:
        """The records after the anchor."""
        if self._since is None:
            assert self._block is not None
            self._since = self._block.since_anchor()
        return self._since


def _checkpoint(mark: tuple[str, int, str, str, str | None]) -> Checkpoint:
    name, time, kind, scope, tag = mark
    return Checkpoint(name, 0, 0, time, kind, scope, tag)


def _numbers(journal: Journal, row: int) -> dict[int, int]:
    """Disk of the stream to its number after a row."""
    numbers: dict[int, int] = {}
    for change in journal.timeline.changes:
        if change.row > row:
            break
        if change.size is not None:
            numbers[change.disk] = change.number
    return numbers


def _holds(line: Lineage, row: int) -> bool:
    return any(s.first_row <= row < s.end_row for s in line.stretches)


def _after(stretches: list[Stretch], row: int) -> list[Stretch]:
    """What of a lineage comes after a row of it. Positions keep their order."""
    found = []
    for stretch in stretches:
        if stretch.first_row > row:
            found.append(stretch)
        elif stretch.end_row > row + 1:
            by = row + 1 - stretch.first_row
            cut = Stretch(row + 1, stretch.end_row, stretch.raised + by, stretch.skipped + by)
            found.append(cut)
    return found


def find_list(store: ObjectStore, identity: Identity, number: int) -> ListClear:
    """The clear part of a layer list; LayerDamaged."""
    name = layers_name(identity, number)
    try:
        return parse_list(store.get(name), identity, number)[2]
    except (ObjectMissing, WireError) as error:
        raise LayerDamaged(name, error.message) from error


def unfinished_list(
    store: ObjectStore, identity: Identity, after: int, place: int
) -> tuple[ListClear | None, int]:
    """(a list that has no boundary yet and may get one, the number for a new list otherwise).

    It is as good as new if all its objects are there and it gives up no more than `place`.
    """
    numbers = [number_of(listed.name) or 0 for listed in store.list(layers_prefix(identity))]
    number = max([after, *numbers])
    while True:
        try:
            store.size(layers_name(identity, number + 1))
        except ObjectMissing:
            break
        number += 1
    if number == after:
        return None, number + 1
    try:
        clear = find_list(store, identity, number)
        whole = all(store.size(part_name(identity, s)) == size for s, size in clear.objects())
    except (ObjectMissing, LayerDamaged):
        return None, number + 1
    fits = whole and clear.newest.place <= place
    return (clear, number) if fits else (None, number + 1)
