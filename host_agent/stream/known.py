"""What is known of the blocks that the journal holds: a hash list, and what was recorded since.

Pure. A block is known as the list says it until any record after the list touches it, or its disk
gives it up; from then on nothing is known, and it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from host_agent.stream.errors import NotComparable
from host_agent.wire.errors import WireError
from host_agent.wire.hashlist import Directory, ListedDisk, blocks_of
from host_agent.wire.limits import HASH_BLOCK_BYTES, HASH_PART_BLOCKS
from host_agent.wire.record import Op, Records

_WRITES = np.zeros(256, bool)
_WRITES[[Op.WRITE, Op.ZERO, Op.TRIM, Op.SYNC, Op.SYNC_ZERO]] = True
#: Records that say what the disks are.
ABOUT_DISKS = (Op.BEGIN, Op.DISK, Op.DETACH, Op.RESIZE)
#: A range of more blocks is marked by itself rather than block by block.
_LONG_BLOCKS = 4096

_T = TypeVar("_T")

BodyOf = Callable[[int], bytes]
"""The body of a record, by its sequence."""


class _DiskEntry(msgspec.Struct, frozen=True):
    disk: int
    name: str
    size: int


class _Begin(msgspec.Struct, frozen=True):
    generation: str
    disks: list[_DiskEntry]
    predecessor: str | None = None


class _Detach(msgspec.Struct, frozen=True):
    disk: int


class KnownDisk:
    """One disk of the list. `index` is its order in the directory."""

    def __init__(self, index: int, listed: ListedDisk) -> None:
        self.index = index
        self.name = listed.name
        self.size = listed.size
        self.parts = dict(listed.parts)
        self.is_given_up = False
        self._cut = blocks_of(listed.size)
        self._touched: dict[int, NDArray[np.bool_]] = {}

    def touch(self, first: int, last: int) -> None:
        """Nothing is known any more of the blocks `first` to `last`."""
        last = min(last, self._cut - 1)
        for part in range(first // HASH_PART_BLOCKS, last // HASH_PART_BLOCKS + 1):
            start = part * HASH_PART_BLOCKS
            low, high = max(first - start, 0), min(last - start + 1, HASH_PART_BLOCKS)
            self._part(part)[low:high] = True

    def touch_many(self, blocks: NDArray[np.int64]) -> None:
        """The same for single blocks."""
        blocks = blocks[blocks < self._cut]
        for part in np.unique(blocks // HASH_PART_BLOCKS).tolist():
            within = blocks[blocks // HASH_PART_BLOCKS == part] - part * HASH_PART_BLOCKS
            self._part(part)[within] = True

    def _part(self, part: int) -> NDArray[np.bool_]:
        if part not in self._touched:
            self._touched[part] = np.zeros(HASH_PART_BLOCKS, bool)
        return self._touched[part]

    def cut(self, size: int) -> None:
        """The disk has, or had in between, this size: what lies beyond was given up."""
        if size != self.size:
            self._cut = min(self._cut, min(size, self.size) // HASH_BLOCK_BYTES)

    def give_up(self) -> None:
        """Nothing is known of it any more."""
        self.is_given_up = True
        self._touched.clear()

    def unknown(self, first: int, count: int) -> NDArray[np.bool_]:
        """For `count` blocks of one part from `first` on: whether nothing is known of each."""
        if self.is_given_up:
            return np.ones(count, bool)
        part, within = divmod(first, HASH_PART_BLOCKS)
        assert within + count <= HASH_PART_BLOCKS, "blocks of one part"
        found = np.zeros(count, bool)
        if part in self._touched:
            found |= self._touched[part][within : within + count]
        beyond = max(0, min(count, first + count - self._cut))
        if beyond:
            found[count - beyond :] = True
        return found


class Known:
    """All disks of a list, followed over the records that came after it."""

    def __init__(self, directory: Directory, generation: bytes, last_seq: int) -> None:
        self.disks = {d.name: KnownDisk(n, d) for n, d in enumerate(directory.disks)}
        self._numbers = {d.number: self.disks[d.name] for d in directory.disks}
        self.generation = generation
        self._last_seq = last_seq

    def current(self) -> list[tuple[int, KnownDisk]]:
        """The disks that the stream has now and of which something is known, by number."""
        held = sorted(self._numbers.items())
        return [(number, disk) for number, disk in held if not disk.is_given_up]

    def apply(self, generation: bytes, records: Records, body_of: BodyOf) -> None:
        """The next records of the stream; NotComparable, WireError if they do not follow."""
        first = int(records[0]["seq"])
        if generation != self.generation:
            if first != 1:
                raise WireError("A generation does not begin with its first record.")
            self._start(generation, body_of(1))
        elif first != self._last_seq + 1:
            raise WireError(f"Record {first} does not follow {self._last_seq}.")
        done = 0
        for at in np.flatnonzero(np.isin(records["op"], ABOUT_DISKS)).tolist():
            self._touch(records[done:at])
            self._about(records[at], body_of)
            done = at + 1
        self._touch(records[done:])
        self._last_seq = int(records[-1]["seq"])

    def _start(self, generation: bytes, body: bytes) -> None:
        begin = _parse(body, _Begin)
        if begin.generation != generation.hex():
            raise WireError("BEGIN names another generation than its frame.")
        if begin.predecessor != self.generation.hex():
            raise NotComparable(
                "What the journal holds now does not continue what the hash list is of."
            )
        self.generation = generation

    def _touch(self, records: Records) -> None:
        rows = records[_WRITES[records["op"]]]
        for number in np.unique(rows["disk"]).tolist():
            disk = self._numbers.get(number)
            if disk is None or disk.is_given_up:
                continue
            mine = rows[rows["disk"] == number]
            first = (mine["offset"] // HASH_BLOCK_BYTES).astype(np.int64)
            end = mine["offset"] + mine["length"].astype(np.uint64) - np.uint64(1)
            last = (end // HASH_BLOCK_BYTES).astype(np.int64)
            spans = last - first + 1
            for at in np.flatnonzero(spans > _LONG_BLOCKS).tolist():
                disk.touch(int(first[at]), int(last[at]))
            short = spans <= _LONG_BLOCKS
            first, spans = first[short], spans[short]
            within = np.arange(int(spans.sum())) - np.repeat(np.cumsum(spans) - spans, spans)
            disk.touch_many(np.unique(np.repeat(first, spans) + within))

    def _about(self, record: Any, body_of: BodyOf) -> None:
        op, seq = int(record["op"]), int(record["seq"])
        if op == Op.RESIZE:
            disk = self._numbers.get(int(record["disk"]))
            if disk is not None:
                disk.cut(int(record["offset"]))
        elif op == Op.BEGIN:
            begin = _parse(body_of(seq), _Begin)
            named = {entry.name for entry in begin.disks}
            for name, disk in self.disks.items():
                if name not in named:
                    disk.give_up()
            self._numbers.clear()
            for entry in begin.disks:
                self._describe(entry)
        elif op == Op.DISK:
            self._describe(_parse(body_of(seq), _DiskEntry))
        else:
            number = _parse(body_of(seq), _Detach).disk
            if number in self._numbers:
                self._numbers.pop(number).give_up()

    def _describe(self, entry: _DiskEntry) -> None:
        disk = self.disks.get(entry.name)
        held = self._numbers.get(entry.disk)
        if held is not None and held is not disk:
            held.give_up()
        if disk is not None:
            self._numbers[entry.disk] = disk
            disk.cut(entry.size)


def _parse(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"A record's body is malformed: {error}.") from None
