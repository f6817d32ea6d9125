"""An agent for tests: takes every record off the ring, checks it, and replays it in the model."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from host_agent.wire.hashing import RecordHash
from host_agent.wire.limits import HASH_GRID
from host_agent.wire.record import check_records
from host_agent.wire.ring import RingView
from tests.model.model import BEGIN, SYNC, WRITE, Event, Model
from tests.model.sectors import crc32c as plain_crc32c
from tests.tap.daemon import Stream

_ENTRY = struct.Struct("<QQQQIIIHBBQII")
_BODIES = range(16, 32)


@dataclass(frozen=True)
class Taken:
    """One record as it lay in the ring."""

    seq: int
    time: int
    event: Event
    crc: int
    payload_pos: int

    @property
    def op(self) -> int:
        """Which operation."""
        return self.event.op


class Follower:
    """Follows one stream from its beginning. `model` is always at the position `seq`.

    `replays` is for streams whose disks the model could not hold.
    """

    def __init__(self, stream: Stream, *, replays: bool = True) -> None:
        self.stream = stream
        self.replays = replays
        self.view = RingView(memoryview(stream.map))
        self.model = Model()
        self.model.start_generation(keep=False)
        self.taken: list[Taken] = []
        self.hash = RecordHash()
        self.seq = 0
        self.payload_end = 0
        self.anchors: list[tuple[int, bytes]] = [(0, bytes(32))]

    def reopen(self, stream: Stream) -> None:
        """Go on over a new connection to the tap. A new generation starts from its beginning."""
        same = stream.opened["generation"] == self.stream.opened["generation"]
        self.stream = stream
        self.view = RingView(memoryview(stream.map))
        if not same:
            self.model.start_generation(keep=True)
            self.hash, self.seq, self.payload_end = RecordHash(), 0, 0
            self.anchors = [(0, bytes(32))]

    def take(self, *, free: bool = True) -> list[Taken]:
        """Everything up to the head, checked field by field; given back if `free`."""
        head = self.stream.state()["head"]
        fresh: list[Taken] = []
        while self.seq < head:
            last = min(head, self.seq + self.view.header.index_capacity - 1, self.seq + 4096)
            fresh += self._take(self.seq + 1, last)
        if free and self.seq:
            self.free()
        return fresh

    def free(self) -> None:
        """Give back all that was taken, with the newest anchor."""
        anchor, anchor_hash = self.anchors[-1]
        self.stream.call("free", seq=self.seq, anchor=anchor, anchor_hash=anchor_hash.hex())

    def _take(self, first: int, last: int) -> list[Taken]:
        entries = self.view.records(first, last)
        check_records(entries, first)
        self.hash.update(entries)
        if self.hash.anchor and self.hash.anchor != self.anchors[-1][0]:
            assert self.hash.anchor % HASH_GRID == 0
            self.anchors.append((self.hash.anchor, self.hash.anchor_hash))
        payload = memoryview(b"".join(self.view.payload_spans(entries)))
        fresh, at = [], 0
        for number in range(first, last + 1):
            one = self._raw(number)
            length = one[6]
            fresh.append(self._check(one, bytes(payload[at : at + length])))
            at += length
        assert at == len(payload)
        self.taken += fresh
        return fresh

    def _raw(self, seq: int) -> tuple[int, ...]:
        """The entry's fields, found and checked without the reader."""
        header = self.view.header
        at = header.index_offset + seq % header.index_capacity * 64
        raw = bytes(self.stream.map[at : at + 64])
        assert plain_crc32c(raw[:60]) == struct.unpack_from("<I", raw, 60)[0]
        fields = _ENTRY.unpack(raw)
        assert fields[0] == seq
        assert fields[11] == seq // header.index_capacity & 0xFFFFFFFF
        return fields

    def _check(self, raw: tuple[int, ...], payload: bytes) -> Taken:
        seq, time, offset, aux, length, crc, count, disk, op, flags, position = raw[:11]
        if count <= 65_536:  # the plain checksum is slow; the tap's large ones are checked by spans
            assert crc == plain_crc32c(payload)
        if count:
            self._check_place(position, count)
        body = json.loads(payload) if op in _BODIES else None
        data = payload if op in (WRITE, SYNC) else b""
        event = Event(op, disk, offset, length, data, aux, flags, body)
        if op == BEGIN and seq == 1:
            assert body is not None
            assert body["generation"] == self.stream.opened["generation"]
        assert seq == self.seq + 1
        self.seq = self.model.apply(event) if self.replays else seq
        assert self.seq == seq
        return Taken(seq, time, event, crc, position)

    def _check_place(self, position: int, count: int) -> None:
        """Each payload begins at the next 64 bytes, or the area anew because it would not fit."""
        capacity = self.view.header.payload_capacity
        expected = -(-self.payload_end // 64) * 64
        if expected % capacity + count > capacity:
            expected += capacity - expected % capacity
        assert position == expected
        self.payload_end = position + count

    def sync(self, piece: int = 4 << 20, rounds: int = 10_000) -> None:
        """Let the tap read what it must until it records again, taking everything meanwhile."""
        for _ in range(rounds):
            answer = self.stream.call("sync", bytes=piece)
            self.take()
            if answer["state"] == "recording":
                return
        raise AssertionError("the sync does not end")

    def image(self, disk: str = "d") -> bytes:
        """What the model says that the disk holds."""
        return self.model.disks[disk].image()
