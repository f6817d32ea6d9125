"""Compares the disks with what the journal holds, so that a sync sends only what differs.

Only in a sync interval: every write of the machine is recorded and sorts later than what a read
found, and a read that a write tore has another hash and is sent. What was recorded up to the
interval's BEGIN but after the hash list counts as different. Nothing here writes to a disk.
"""

from __future__ import annotations

import asyncio

import numpy as np

from host_agent.stream.errors import (
    LinkLost,
    NotComparable,
    ReadbackFailed,
    RingChanged,
    TapGone,
)
from host_agent.stream.known import ABOUT_DISKS, Known, KnownDisk
from host_agent.stream.parts import OpenRing, Shared
from host_agent.stream.ports import ComparingTap
from host_agent.stream.readback import Missing, Readback
from host_agent.stream.scan import CHUNK_BLOCKS, DiskScan
from host_agent.stream.signals import Signal
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.hashlist import (
    HASHED,
    UNKNOWN,
    ZERO,
    Blocks,
    Hashes,
    Kinds,
    SealedPart,
    block_key,
    blocks_of,
    parse_blocks,
    parse_directory,
    parse_part,
)
from host_agent.wire.limits import (
    HASH_BLOCK_BYTES,
    HASH_PART_BLOCKS,
    HASH_PART_BYTES_MAX,
    KEY_OBJECT_BYTES_MAX,
    MIB,
)
from host_agent.wire.message import Fetch
from host_agent.wire.record import Op, Records, State
from host_agent.wire.seal import FrameOpener
from host_agent.wire.segment import FrameRef, SegmentInfo, check_follows, parse_tail

#: Ranges in one request to the tap; it must fit one message.
_RANGES_MAX = 1000
#: A scan takes at most this share of a thread's time, so that frames are never far behind.
_REST_SHARE = 0.05
_REST_SECONDS_MIN = 0.01
_NO_LIST = "the journal has no hash list; `holdfast journal hashes` makes one"
#: Read before the tap hears what is the same, and may send what is not, bytes.
_TELL_BYTES = 32 * MIB


class Comparison:
    """One sync interval's. `frontier`: the disk and byte before which everything is compared; None:
    a sync may read everything that is still marked."""

    def __init__(
        self, ring: OpenRing, tap: ComparingTap, begin: int, shared: Shared, journal: Readback
    ) -> None:
        self.ring = ring
        self.tap = tap
        self.begin = begin
        self.shared = shared
        self._journal = journal
        self._identity = shared.settings.identity
        self.means = shared.means
        self.progress = shared.figures.sync.compared
        self._data_keys = {ring.generation: ring.key.key}
        self._openers: dict[bytes, FrameOpener] = {}
        self.frontier: tuple[int, int] | None = (0, 0)
        self.moved = Signal()

    async def run(self) -> None:
        """Compare everything. What makes that impossible is shown, and everything is sent; what
        ends the connection is raised."""
        self.progress.start()
        try:
            known, first = await self._learn()
            await self._compare(known, first)
            self.progress.phase = "done"
        except (TapGone, RingChanged, LinkLost):
            raise
        except HoldfastError as error:
            # A refusal for another interval needs no word: that one is compared anew.
            if error.code != "stale_interval":
                self.progress.give_up(error.message)
        finally:
            self.frontier = None
            self.moved.notify()

    # --- what the journal holds

    async def _learn(self) -> tuple[Known, SealedPart]:
        try:
            place, data = await self._journal.whole(Fetch(0, "hashes"), HASH_PART_BYTES_MAX)
        except Missing:
            raise NotComparable(_NO_LIST) from None
        end = await self._journal.stored_place(self.begin)
        first = parse_part(data)
        newest = first.newest
        is_sound = first.number == 0 and newest.place == place and newest.state == State.RECORDING
        if not is_sound or place > end:
            raise WireError(f"The hash list of place {place} is that of another place.")
        data_key = await self._data_key(newest.generation)
        directory = parse_directory(first.open(self._identity, data_key))
        known = Known(directory, newest.generation, newest.last_seq)
        self.progress.place, self.progress.tails = place, end - place
        await self._follow(known, newest, end)
        return known, first

    async def _data_key(self, generation: bytes) -> bytes:
        if generation not in self._data_keys:
            wanted = Fetch(0, "key", generation=generation.hex())
            _, wrapped = await self._journal.whole(wanted, KEY_OBJECT_BYTES_MAX)
            self._data_keys[generation] = self.shared.unwrap(generation, wrapped)
        return self._data_keys[generation]

    async def _opener(self, generation: bytes) -> FrameOpener:
        if generation not in self._openers:
            key = await self._data_key(generation)
            self._openers[generation] = FrameOpener(key, self._identity)
        return self._openers[generation]

    async def _follow(self, known: Known, before: SegmentInfo, end: int) -> None:
        """All records after the list, from the segments' tails up to the place `end`."""
        data = b""
        while before.place < end:
            wanted = Fetch(0, "tails", place=before.place + 1, offset=len(data))
            answer = await self._journal.fetch(wanted)
            if not answer.data:
                raise ReadbackFailed(f"The journal lacks the segment at place {before.place + 1}.")
            data += answer.data
            while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "little"):
                length = int.from_bytes(data[:4], "little")
                info, frames = parse_tail(data[4 : 4 + length])
                data = data[4 + length :]
                if info.identity_hash != self._identity.hash:
                    raise WireError("A segment is that of another stream.")
                check_follows(before, info)
                for frame in frames:
                    await self._apply(known, info.place, frame)
                before = info
                self.progress.tails = end - info.place

    async def _apply(self, known: Known, place: int, frame: FrameRef) -> None:
        header = frame.header
        opener = await self._opener(header.generation)
        records = await self.means.offload(
            lambda: opener.open_index(header, frame.header_bytes, frame.index)
        )
        bodies: dict[int, bytes] = {}
        if np.isin(records["op"], (Op.BEGIN, Op.DISK, Op.DETACH)).any():
            sealed = await self._journal.range(place, frame.payload_offset, frame.payload_length)
            plain = opener.open_payload(header, frame.header_bytes, sealed)
            bodies = _bodies(records, plain)
        known.apply(header.generation, records, bodies.__getitem__)

    # --- what the disks hold

    async def _compare(self, known: Known, first: SealedPart) -> None:
        self.progress.phase = "comparing"
        key = block_key(await self._data_key(first.newest.generation))
        disks = known.current()
        if not disks:
            raise NotComparable("The hash list has none of the disks as they are now.")
        began = self.means.clock.monotonic()
        for number, disk in disks:
            self.move((number, 0))
            look = await self.tap.look(disk.name)
            scan = DiskScan(look.descriptor, look.size, key)
            try:
                await _DiskComparison(self, number, disk, scan, first).run(look.size)
            finally:
                scan.close()
                self.progress.seconds = round(self.means.clock.monotonic() - began, 3)

    def move(self, frontier: tuple[int, int]) -> None:
        """Everything before this place is compared."""
        self.frontier = frontier
        self.moved.notify()

    async def part(self, first: SealedPart, disk: KnownDisk, part: int) -> Blocks:
        """What the list says of one part of a disk; all zeroes where it says nothing."""
        start = part * HASH_PART_BLOCKS
        count = min(HASH_PART_BLOCKS, max(0, blocks_of(disk.size) - start))
        number = disk.parts.get(start)
        if number is None:
            return Blocks(start, np.full(count, ZERO, np.uint8), np.zeros((count, 16), np.uint8))
        wanted = Fetch(0, "hashes", place=first.newest.place, part=number)
        _, data = await self._journal.whole(wanted, HASH_PART_BYTES_MAX)
        found = parse_part(data)
        if (found.number, found.newest) != (number, first.newest):
            raise WireError("A part of the hash list is that of another list.")
        key = await self._data_key(first.newest.generation)
        blocks = parse_blocks(found.open(self._identity, key), disk.index, start)
        if len(blocks.kinds) != count:
            raise WireError("A part of the hash list has another length than its disk.")
        return blocks


def _bodies(records: Records, plain: bytes) -> dict[int, bytes]:
    ends = np.cumsum(records["payload_length"], dtype=np.uint64)
    found: dict[int, bytes] = {}
    for row in np.flatnonzero(np.isin(records["op"], ABOUT_DISKS)).tolist():
        end = int(ends[row])
        begin = end - int(records["payload_length"][row])
        found[int(records["seq"][row])] = plain[begin:end]
    return found


class _DiskComparison:
    """One disk of a comparison."""

    def __init__(
        self,
        whole: Comparison,
        number: int,
        disk: KnownDisk,
        scan: DiskScan,
        first: SealedPart,
    ) -> None:
        self._whole = whole
        self._number = number
        self._disk = disk
        self._scan = scan
        self._first = first
        self._part: Blocks | None = None
        self._pending: list[tuple[int, int]] = []
        self._untold = 0
        self._owed = 0.0

    async def run(self, size: int) -> None:
        """Everything of it that is to be read."""
        whole, at = self._whole, 0
        while True:
            found = await whole.tap.to_read(self._disk.name, at)
            for start, length in found.ranges:
                last = min(size, start + length)
                await self._range(start // HASH_BLOCK_BYTES, blocks_of(last), size)
            if found.next is None:
                break
            at = found.next
        await self._tell()
        whole.move((self._number + 1, 0))

    async def _range(self, first: int, end: int, size: int) -> None:
        whole, progress = self._whole, self._whole.progress
        at = first
        while at < end:
            base = await self._base(at)
            most = min(end - at, base.first + HASH_PART_BLOCKS - at)
            within = at - base.first
            count = min(most, CHUNK_BLOCKS)
            began, before = whole.means.clock.monotonic(), self._scan.bytes
            if self._disk.unknown(at, count).all() or within >= len(base.kinds):
                progress.differ_bytes += _length(at, count, size)
            else:
                most = min(most, len(base.kinds) - within)
                kinds, hashes = await whole.means.offload(
                    lambda at=at, most=most: self._scan.look(at, most)  # type: ignore[misc]
                )
                count = len(kinds)
                self._judge(at, kinds, hashes, base, size)
            progress.read_bytes += self._scan.bytes - before
            at += count
            self._untold += self._scan.bytes - before
            if len(self._pending) >= _RANGES_MAX // 2 or self._untold >= _TELL_BYTES:
                self._untold = 0
                await self._tell()
                whole.move((self._number, min(at * HASH_BLOCK_BYTES, size)))
            await self._rest(self._scan.bytes - before, began)

    def _judge(self, at: int, kinds: Kinds, hashes: Hashes, base: Blocks, size: int) -> None:
        within, count = at - base.first, len(kinds)
        theirs = base.kinds[within : within + count]
        is_same = (kinds == theirs) & (kinds != UNKNOWN) & ~self._disk.unknown(at, count)
        is_hashed = kinds == HASHED
        equal = (hashes == base.hashes[within : within + count]).all(axis=1)
        is_same &= equal | ~is_hashed
        same = 0
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_same.view(np.int8), [0]])))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            length = _length(at + start, stop - start, size)
            self._pending.append(((at + start) * HASH_BLOCK_BYTES, length))
            same += length
        progress = self._whole.progress
        progress.same_bytes += same
        progress.differ_bytes += _length(at, count, size) - same

    async def _tell(self) -> None:
        whole = self._whole
        while self._pending:
            ranges, self._pending = self._pending[:_RANGES_MAX], self._pending[_RANGES_MAX:]
            await whole.tap.same(whole.ring.generation, whole.begin, self._disk.name, ranges)

    async def _rest(self, read: int, began: float) -> None:
        """Leave some of the time to what sends, in pieces that are worth a timer."""
        clock, bucket = self._whole.means.clock, self._whole.shared.buckets.scan
        now = clock.monotonic()
        bucket.take(read, now)
        self._owed += (now - began) * _REST_SHARE
        wait = max(self._owed, bucket.wait_seconds(now))
        if wait >= _REST_SECONDS_MIN:
            self._owed = 0.0
            await asyncio.sleep(wait)

    async def _base(self, at: int) -> Blocks:
        part = at // HASH_PART_BLOCKS
        if self._part is None or self._part.first != part * HASH_PART_BLOCKS:
            self._part = await self._whole.part(self._first, self._disk, part)
        return self._part


def _length(first: int, count: int, size: int) -> int:
    """Bytes of blocks; the disk's last may be short."""
    return min(size, (first + count) * HASH_BLOCK_BYTES) - first * HASH_BLOCK_BYTES
