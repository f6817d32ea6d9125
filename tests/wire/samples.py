"""Valid records, frames and rings to test with: fixed ones, and strategies that draw others.

The ring is written here from FORMAT.md alone, without the reader's code.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from host_agent.wire.frame import KIND_CRASH, SCOPE_COMMIT, SCOPE_STREAM, Marker
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity
from host_agent.wire.record import NO_DISK, RECORD, Flag, Op, Records
from host_agent.wire.seal import FrameSealer, SealedFrame
from tests.model.sectors import crc32c

IDENTITY = Identity("acme", "erp", "host-1")
GENERATION = bytes(range(16))
DATA_KEY = bytes(range(32, 64))
SALT = bytes(range(64, 96))
START = 1_790_000_000_000_000_000
SECTOR = 512


@dataclass
class Batch:
    """Consecutive records with their payloads, from after `start` on."""

    start: int = START
    rows: list[tuple[int, ...]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    @property
    def records(self) -> Records:
        """As an array."""
        return np.array(self.rows, RECORD)

    @property
    def payload(self) -> bytes:
        """All payloads in order."""
        return b"".join(self.payloads)

    @property
    def markers(self) -> tuple[Marker, ...]:
        """As the clear header must name them."""
        return tuple(
            Marker(
                row[0].to_bytes(16, "big"),
                row[0],
                row[1],
                SCOPE_COMMIT if row[8] == Op.COMMIT else SCOPE_STREAM,
                KIND_CRASH,
            )
            for row in self.rows
            if row[8] in (Op.MARK, Op.COMMIT)
        )

    def add(self, op: int, **fields: int) -> None:
        """A record after the last, with a payload that is made of its sequence."""
        before = self.rows[-1] if self.rows else (fields.get("after", 0), self.start)
        seq = before[0] + 1
        covers = op in (Op.WRITE, Op.ZERO, Op.TRIM, Op.SYNC, Op.SYNC_ZERO)
        length = fields.get("length", SECTOR) if covers else 0
        if op in (Op.WRITE, Op.SYNC):
            payload = (seq.to_bytes(8, "little") * (length // 8))[:length]
        elif op >= Op.BEGIN:
            payload = json.dumps({"n": seq, "pad": "x" * fields.get("pad", 0)}).encode()
        else:
            payload = b""
        on_disk = op < Op.BEGIN
        self.rows.append(
            (
                seq,
                before[1] + fields.get("dt", 1000),
                fields.get("offset", 0) if covers or op == Op.RESIZE else 0,
                fields.get("aux", 0),
                length,
                crc32c(payload),
                len(payload),
                fields.get("disk", 0) if on_disk else NO_DISK,
                op,
                fields.get("flags", 0),
            )
        )
        self.payloads.append(payload)


def typical(after: int = 0) -> Batch:
    """One record of every kind, starting behind position `after`."""
    batch = Batch()
    batch.add(Op.BEGIN, after=after)
    batch.add(Op.SYNC, aux=after, offset=4096, length=4096)
    batch.add(Op.SYNC_ZERO, aux=after, offset=1 << 30, length=(1 << 32) - 512)
    batch.add(Op.WRITE, offset=0, length=1024, flags=Flag.FUA)
    batch.add(Op.WRITE, offset=8192, length=2048, flags=Flag.MORE)
    batch.add(Op.WRITE, offset=10240, length=512, flags=Flag.TAIL, disk=0)
    batch.add(Op.ZERO, offset=1 << 40, length=1 << 20, disk=255)
    batch.add(Op.TRIM, offset=(64 << 40) - 512, length=512, disk=3)
    batch.add(Op.FLUSH, disk=3)
    batch.add(Op.RESIZE, offset=64 << 40, disk=3)
    batch.add(Op.END)
    for op in (Op.MARK, Op.COMMIT, Op.DISK, Op.DETACH, Op.CONFIG, Op.HANDOVER):
        batch.add(op, dt=0)
    return batch


def seal(
    batch: Batch, sealer: FrameSealer | None = None, running: RecordHash | None = None
) -> SealedFrame:
    """The batch as a frame; its record hash goes on from `running`, or is a stand-in."""
    records = batch.records
    if running is None and int(records[0]["seq"]) == 1:
        running = RecordHash()
    if running is not None:
        running.update(records)
    digest = running.digest() if running is not None else bytes([7]) * 32
    sealer = sealer or FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    return sealer.seal(records, batch.payload, state=1, record_hash=digest, markers=batch.markers)


@st.composite
def batches(draw: st.DrawFn, max_records: int = 24) -> Batch:
    """Batches of valid records, from any first sequence."""
    batch = Batch()
    after = draw(st.one_of(st.just(0), st.integers(0, 1 << 62)))
    for _ in range(draw(st.integers(1, max_records))):
        inside = bool(batch.rows) and bool(batch.rows[-1][9] & Flag.MORE)
        op = batch.rows[-1][8] if inside else draw(st.sampled_from(list(Op)))
        length = draw(st.integers(1, 4)) * SECTOR
        flags = draw(st.sampled_from([0, Flag.FUA, Flag.MORE])) if op in (1, 2, 3) else 0
        seq = batch.rows[-1][0] + 1 if batch.rows else after + 1
        is_sync = op in (Op.SYNC, Op.SYNC_ZERO)
        batch.add(
            op,
            after=after,
            dt=draw(st.integers(0, 1 << 40)),
            offset=draw(st.integers(0, ((64 << 40) - length) // SECTOR)) * SECTOR,
            aux=draw(st.integers(0, seq - 1)) if is_sync else 0,
            length=length,
            disk=draw(st.integers(0, 255)),
            flags=flags | (Flag.TAIL if inside else 0),
            pad=draw(st.integers(0, 40)),
        )
    return batch


class RingFile:
    """A ring as the tap would leave it, byte by byte from FORMAT.md section 2."""

    def __init__(self, slots: int, payload_bytes: int, generation: bytes = GENERATION) -> None:
        self.slots, self.size = slots, payload_bytes
        table_at, table_slots = 4096, 16
        index_at = table_at + table_slots * 16
        payload_at = index_at + slots * 64
        fixed = generation + struct.pack("<QQQQ", slots, payload_bytes, index_at, payload_at)
        fixed += bytes(16) + struct.pack("<QQI", START, table_at, table_slots) + bytes(28)
        lead = b"HFRING\0\x01" + struct.pack("<II", 2, crc32c(fixed))
        self.data = bytearray((lead + fixed).ljust(payload_at + payload_bytes, b"\0"))
        self.index_at, self.payload_at = index_at, payload_at
        self.position = 0

    def put(self, row: tuple[int, ...], payload: bytes) -> None:
        """One more record and its payload."""
        left = self.size - self.position % self.size
        if len(payload) > left:
            self.position += left
        at = self.payload_at + self.position % self.size
        self.data[at : at + len(payload)] = payload
        entry = struct.pack("<QQQQIIIHBB", *row)
        entry += struct.pack("<QI", self.position, row[0] // self.slots & 0xFFFFFFFF)
        entry += struct.pack("<I", crc32c(entry))
        slot = self.index_at + row[0] % self.slots * 64
        self.data[slot : slot + 64] = entry
        self.position += len(payload)

    def fill(self, batch: Batch) -> None:
        """All of a batch."""
        for row, payload in zip(batch.rows, batch.payloads, strict=True):
            self.put(row, payload)
