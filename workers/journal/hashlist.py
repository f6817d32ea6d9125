"""Makes hash lists: of one place of a chain, what each 64 KiB of each disk holds.

Piece by piece of the address space: a window of a disk is put together in memory from the map of
that moment, hashed, and forgotten. Its objects are created if absent, the directory last: a list
without one does not exist, and who is ended in between makes the same objects again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from host_agent.wire.hashlist import (
    HASHED,
    ZERO,
    Blocks,
    Directory,
    ListedDisk,
    ListSeal,
    block_key,
    blocks_of,
    hash_blocks,
    pack_blocks,
    pack_directory,
)
from host_agent.wire.keys import JournalKey
from host_agent.wire.limits import HASH_BLOCK_BYTES, HASH_PART_BLOCKS, MIB
from host_agent.wire.names import Identity, hashes_name, hashes_place, hashes_prefix
from host_agent.wire.record import State
from host_agent.wire.segment import SegmentInfo
from workers.journal.chain import read_tail
from workers.journal.errors import NothingToRestore
from workers.journal.mapfile import MapDisk, PointMap
from workers.journal.pitmap import build_map, map_seal
from workers.journal.points import Point
from workers.journal.reader import FrameInfo, Journal, ReadOptions, open_journal
from workers.storage.failpoints import failpoint
from workers.storage.port import Created, ObjectStore

#: Of a disk in memory at once, bytes.
WINDOW_BYTES = 64 * MIB

Fetch = Callable[[Journal, Iterator[int]], Iterator[tuple[FrameInfo, bytes]]]
"""Frames by ascending numbers, with their data verified."""

Progress = Callable[[int], None]


@dataclass
class WrittenHashes:
    """What a run made. `data_bytes`: of the disks, read and hashed; `bytes`: of new objects."""

    place: int
    generation: str
    seq: int
    made: list[str] = field(default_factory=list)
    there: bool = False
    data_bytes: int = 0
    blocks: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {**vars(self), "problems": []}


def write_hashes(
    store: ObjectStore,
    identity: Identity,
    key: JournalKey,
    fetch: Fetch,
    progress: Progress | None = None,
) -> WrittenHashes:
    """Make the hash list of the newest place at which the stream was recording.

    `progress` hears bytes of disks. Raises NothingToRestore, UnknownBase, PayloadDamaged,
    StoreError and what `open_journal` raises.
    """
    options = ReadOptions(use_index=True)
    with open_journal(store, identity, key, options) as journal:
        place = _consistent_place(journal)
        newest = journal.newest
        if newest is not None and newest.place == place:
            return make_hashes(journal, fetch, progress)
    with open_journal(store, identity, key, replace(options, until=place)) as journal:
        return make_hashes(journal, fetch, progress)


def _consistent_place(journal: Journal) -> int:
    """The newest place whose end lies in no sync."""
    place = journal.newest.place if journal.newest else 0
    while place:
        info, _ = read_tail(journal.store, journal.identity, place)
        if info.state == State.RECORDING:
            return place
        if info.state == State.NONE:
            break
        place = min(place, _place_of_begin(journal, info)) - 1
    raise NothingToRestore(
        f"The journal of {journal.identity} was consistent at no place yet: its first sync is not"
        " over.",
        hint="Try again after it; `holdfast-agent status` shows when that will be.",
    )


def _place_of_begin(journal: Journal, info: SegmentInfo) -> int:
    """Where the interval began that is open at the end of that segment."""
    generation = next(g for g in journal.timeline.generations if g.name == info.generation)
    begin = max(sync.begin for sync in generation.syncs if sync.begin <= info.last_seq)
    return journal.frame(journal.frame_of(generation.row(begin))).place


def make_hashes(journal: Journal, fetch: Fetch, progress: Progress | None = None) -> WrittenHashes:
    """Make the hash list of the place at which the opened journal ends."""
    newest = journal.newest
    assert newest is not None
    assert newest.state == State.RECORDING, "a list is of a consistent place"
    written = WrittenHashes(newest.place, newest.generation.hex(), newest.last_seq)
    if _is_there(journal.store, journal.identity, newest.place):
        written.there = True
        return written
    generation = next(g for g in journal.timeline.generations if g.name == newest.generation)
    row = generation.row(newest.last_seq)
    point = Point(generation.index, generation.hex, newest.last_seq, row, 0, None, None)
    found = build_map(journal, point, map_seal(journal, point))
    try:
        seen = progress or (lambda _: None)
        _Maker(_Source(journal, found, fetch), newest, written, seen).run(_numbers(journal, row))
    finally:
        found.close()
    return written


def _is_there(store: ObjectStore, identity: Identity, place: int) -> bool:
    folder = hashes_name(identity, place, 0).rpartition("/")[0] + "/"
    first = next(iter(store.list(folder, limit=1)), None)
    return first is not None and hashes_place(first.name) == (place, 0)


def _numbers(journal: Journal, row: int) -> dict[str, int]:
    """The number by which records name each disk at that row."""
    numbers: dict[str, int] = {}
    for change in journal.timeline.changes:
        if change.row <= row and change.size is not None:
            numbers[journal.timeline.disk_names[change.disk]] = change.number
    return numbers


@dataclass(frozen=True)
class _Source:
    """Where a disk's bytes come from."""

    journal: Journal
    map: PointMap
    fetch: Fetch


class _Maker:
    """One list in the making."""

    def __init__(
        self, source: _Source, newest: SegmentInfo, written: WrittenHashes, progress: Progress
    ) -> None:
        self._source = source
        self._written = written
        self._progress = progress
        keys, identity = source.journal.keys, source.journal.identity
        data_key = keys.data_key(newest.generation)
        self._key = block_key(data_key)
        self._seal = ListSeal(identity, data_key, newest)
        self._parts = 0

    def run(self, numbers: dict[str, int]) -> None:
        """All parts, then the directory."""
        listed = []
        for index, disk in enumerate(self._source.map.disks):
            parts = list(self._disk(index, disk))
            listed.append(ListedDisk(numbers[disk.name], disk.name, disk.size, parts))
        failpoint("hashes_after_parts_before_directory")
        self._create(0, pack_directory(Directory(listed)))

    def _disk(self, index: int, disk: MapDisk) -> Iterator[tuple[int, int]]:
        for first in range(0, blocks_of(disk.size), HASH_PART_BLOCKS):
            blocks = self._blocks(disk, first)
            if blocks is not None:
                self._parts += 1
                self._create(self._parts, pack_blocks(index, blocks))
                yield first, self._parts

    def _create(self, number: int, plain: bytes) -> None:
        data = self._seal.seal(number, plain)
        name = hashes_name(self._source.journal.identity, self._seal.newest.place, number)
        if self._source.journal.store.put_if_absent(name, data) is Created.CREATED:
            self._written.made.append(name)
            self._written.bytes += len(data)

    def _blocks(self, disk: MapDisk, first: int) -> Blocks | None:
        """One part; None where the disk is zeroes."""
        count = min(HASH_PART_BLOCKS, blocks_of(disk.size) - first)
        kinds = np.full(count, ZERO, np.uint8)
        hashes = np.zeros((count, 16), np.uint8)
        end = min(disk.size, (first + count) * HASH_BLOCK_BYTES)
        for start in range(first * HASH_BLOCK_BYTES, end, WINDOW_BYTES):
            window = self._window(disk, start, min(WINDOW_BYTES, end - start))
            if window is not None:
                found, digests = hash_blocks(memoryview(window).cast("B"), self._key)
                at = start // HASH_BLOCK_BYTES - first
                kinds[at : at + len(found)] = found
                hashes[at : at + len(found)] = digests
            self._progress(min(WINDOW_BYTES, end - start))
        hashed = int((kinds == HASHED).sum())
        self._written.blocks += hashed
        return Blocks(first, kinds, hashes) if hashed else None

    def _window(self, disk: MapDisk, start: int, length: int) -> bytearray | None:
        """A window's bytes; None where it is zeroes."""
        pieces = self._source.map.find(disk, start, length)
        if not len(pieces):
            return None
        pieces = pieces[np.argsort(pieces["frame"], kind="stable")]
        data = bytearray(length)
        at = 0
        numbers = iter(np.unique(pieces["frame"]).tolist())
        for frame, plain in self._source.fetch(self._source.journal, numbers):
            while at < len(pieces) and int(pieces["frame"][at]) == frame.number:
                piece = pieces[at]
                to, size, source = (int(piece[name]) for name in ("start", "length", "at"))
                data[to - start : to - start + size] = plain[source : source + size]
                self._written.data_bytes += size
                at += 1
        assert at == len(pieces), "every frame was fetched"
        return data


def newest_hashes(store: ObjectStore, identity: Identity) -> int | None:
    """The newest place that has a whole hash list; None if there is none."""
    names = sorted(store.folders(hashes_prefix(identity)), reverse=True)
    for name in names:
        found = hashes_place(f"{name}{0:08x}")
        if found is not None and _is_there(store, identity, found[0]):
            return found[0]
    return None
