"""The layers that stand for a journal's beginning, as a reader sees them.

To the rest of the journal a layer is one row with what it wrote, and its data are frames of places
that no chain has.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChecksumMismatch, HoldfastError, WireError
from host_agent.wire.names import Identity, layers_name, part_name
from host_agent.wire.record import Op
from workers.journal import layerfile
from workers.journal.boundary import Boundary, newest_boundary
from workers.journal.chain import DAMAGE
from workers.journal.columns import Columns
from workers.journal.errors import JournalMoved, LayerDamaged
from workers.journal.layerfile import (
    Head,
    IndexContent,
    LayerRef,
    ListBody,
    ListClear,
    Ref,
    Sealer,
)
from workers.journal.opening import KeyRing
from workers.journal.timeline import Base, BaseGeneration, BaseLayer, Checkpoint
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: Places from here on are data objects of layers, in the order in which they were loaded.
LAYER_PLACES = 1 << 62

#: Indexes that are read at once: up to 60 MiB each.
_READS_AHEAD = 3


@dataclass(frozen=True)
class Part:
    """A data object: its name, fixed fields, who opens it, and the first of its frames."""

    name: str
    head: Head
    sealer: Sealer
    first_frame: int


@dataclass(frozen=True)
class LayerContent:
    """What a layer adds to a journal: entries by address, frames. Frames count from the first of
    all layers."""

    entries: Columns
    frames: Columns


@dataclass
class LayerSet:
    """The layers of the newest boundary. For several threads once all contents are loaded."""

    store: ObjectStore
    identity: Identity
    boundary: Boundary
    clear: ListClear
    body: ListBody
    parts: list[Part] = field(default_factory=list)
    frames: int = 0

    def contents(self, keys: KeyRing) -> Iterator[LayerContent]:
        """The layers' contents, oldest first, some read ahead; LayerDamaged. To be used up
        once."""
        with ThreadPoolExecutor(_READS_AHEAD, "holdfast-layers") as pool:
            for layer in self.clear.layers:
                sealer = self._sealer(keys, layer)
                names = [part_name(self.identity, short) for short, _ in layer.indexes]
                loaded = pool.map(lambda name, s=sealer: self._load(name, s), names)
                refs = iter(layer.parts)
                yield _join([self._number(content, refs, sealer) for content in loaded])
                if next(refs, None) is not None:
                    raise LayerDamaged(self.name, "it names more parts than its indexes have.")

    def base(self) -> Base:
        """What a timeline begins with; ValueError."""
        body = self.body
        layers = []
        for ref, end in zip(self.clear.layers, body.ends, strict=True):
            marks = [
                Checkpoint(name, 0, 0, time, kind, scope, tag)
                for name, time, kind, scope, tag in end.checkpoints
            ]
            over = ref.over - 1 if ref.over else None
            ranges = tuple(end.unreadable)
            generation = bytes.fromhex(ref.generation)
            layers.append(BaseLayer(over, generation, ref.seq, end.disks, ranges, marks))
        known = {g.name for g in body.generations}
        if any(layer.generation not in known for layer in layers):
            raise ValueError("A layer ends in a generation that is not listed.")
        generations = [BaseGeneration(g.name, g.predecessor, g.last_seq) for g in body.generations]
        return Base(generations, body.disk_names, layers)

    @property
    def name(self) -> str:
        """The name of the list."""
        return layers_name(self.identity, self.clear.number)

    def _sealer(self, keys: KeyRing, layer: LayerRef) -> Sealer:
        generation = bytes.fromhex(layer.seal)
        return Sealer(self.identity, generation, keys.data_key(generation))

    def _load(self, name: str, sealer: Sealer) -> IndexContent:
        try:
            return layerfile.open_layer_index(self.store.get(name), sealer)
        except ObjectMissing as error:
            raise self.missing(name) from error
        except (*DAMAGE, ValueError) as error:
            why = error.message if isinstance(error, HoldfastError) else str(error)
            raise LayerDamaged(name, why) from error

    def _number(self, content: IndexContent, refs: Iterator[Ref], sealer: Sealer) -> LayerContent:
        """Give the index's parts places and its pieces frame numbers."""
        first_frame, first_part = self.frames, len(self.parts)
        counts = [count for count, _ in content.parts]
        for count, fixed in content.parts:
            short, _ = next(refs, ("", 0))
            try:
                part = Part(part_name(self.identity, short), layerfile.parse_head(fixed), sealer,
                            self.frames)  # fmt: skip
            except DAMAGE as error:
                raise LayerDamaged(self.name, error.message) from error
            self.parts.append(part)
            self.frames += count
        sealed = content.pieces["sealed"].astype(np.uint64)
        of_part = np.repeat(np.arange(len(counts)), counts)
        ends = np.cumsum(sealed, dtype=np.uint64)
        before = np.array([0, *accumulate(counts)][:-1] or [0])
        begins = np.concatenate([np.zeros(1, np.uint64), ends])[before]
        at = ends - sealed - begins[of_part] + np.uint64(layerfile.HEAD_BYTES)
        frames = {
            "place": np.uint64(LAYER_PLACES + first_part) + of_part.astype(np.uint64),
            "payload_offset": at,
            "payload_sealed": content.pieces["sealed"],
            "payload_plain": content.pieces["plain"],
            "crc": content.pieces["crc"],
        }
        return LayerContent(_placed(content, first_frame), frames)

    def missing(self, name: str) -> HoldfastError:
        """The error for an object that is not there: collected since, or lost."""
        newest = newest_boundary(self.store, self.identity)
        if newest is not None and newest.number != self.boundary.number:
            return JournalMoved(f"{name} was collected while it was read.")
        return LayerDamaged(name, "it is missing.", self.clear.newest.place)

    def open_piece(self, place: int, frame: int, sealed: bytes | memoryview, plain: int) -> bytes:
        """A piece's data; what DAMAGE names."""
        part = self.parts[place - LAYER_PLACES]
        return part.head.open(frame - part.first_frame, sealed, plain, part.sealer)

    def part_name(self, place: int) -> str:
        """The name of the object at one of the layers' places."""
        return self.parts[place - LAYER_PLACES].name


def _placed(content: IndexContent, first_frame: int) -> Columns:
    """Entries with the frame that holds their data, and where in it."""
    entries, plain = content.entries, content.pieces["plain"].astype(np.uint64)
    is_data = entries["op"] == Op.WRITE
    length = np.where(is_data, entries["length"], 0).astype(np.uint64)
    end = np.cumsum(length, dtype=np.uint64)
    ends = np.cumsum(plain, dtype=np.uint64)
    start = end - length
    frame = np.searchsorted(ends, start, "right")
    total = int(ends[-1]) if len(ends) else 0
    data = np.flatnonzero(is_data)
    if (int(end[-1]) if len(end) else 0) != total:
        raise WireError("A layer's entries do not fill its pieces.")
    within = np.zeros(len(start), np.uint64)
    within[data] = start[data] - (ends - plain)[frame[data]]
    if len(data) and (end[data] > ends[frame[data]]).any():
        raise WireError("An entry of a layer reaches over a piece's end.")
    return {
        **entries,
        "frame": np.where(is_data, frame + first_frame, 0).astype(np.uint32),
        "payload_at": within.astype(np.uint32),
    }


def _join(contents: list[LayerContent]) -> LayerContent:
    def joined(columns: list[Columns]) -> Columns:
        return {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}

    return LayerContent(
        joined([content.entries for content in contents]),
        joined([content.frames for content in contents]),
    )


def check_piece(plain: bytes, crc: int) -> None:
    """ChecksumMismatch unless the data is what the tap's checksums say."""
    if crc32c(plain) != crc:
        raise ChecksumMismatch("A layer's data does not match its checksum.")


def load_list(
    store: ObjectStore, identity: Identity, keys: KeyRing, number: int
) -> tuple[ListClear, ListBody]:
    """A layer list, opened; its copies of key objects are offered. LayerDamaged, ObjectMissing,
    key errors."""
    name = layers_name(identity, number)
    try:
        head, sealed, clear = layerfile.parse_list(store.get(name), identity, number)
        for generation, key in clear.keys.items():
            keys.offer(generation, key.encode())
        sealer = Sealer(identity, head.generation, keys.data_key(head.generation))
        body = layerfile.open_list(head, sealed, sealer)
        if len(body.ends) != len(clear.layers):
            raise WireError("It describes other layers than it names.")
    except (WireError, ChecksumMismatch) as error:
        raise LayerDamaged(name, error.message) from error
    return clear, body


def find_layers(store: ObjectStore, identity: Identity, keys: KeyRing) -> LayerSet | None:
    """The layers of the newest boundary; None for a journal that was never folded.

    BoundaryDamaged, LayerDamaged, JournalMoved, key errors, StoreError.
    """
    boundary = newest_boundary(store, identity)
    if boundary is None:
        return None
    name = layers_name(identity, boundary.layers)
    try:
        clear, body = load_list(store, identity, keys, boundary.layers)
    except ObjectMissing:
        newest = newest_boundary(store, identity)
        if newest is not None and newest.number != boundary.number:
            raise JournalMoved(f"{name} was collected while it was read.") from None
        raise LayerDamaged(name, "it is missing.") from None
    if clear.trailer != boundary.trailer:
        raise LayerDamaged(name, "it ends elsewhere than the boundary says.")
    return LayerSet(store, identity, boundary, clear, body)
