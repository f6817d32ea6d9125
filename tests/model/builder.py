"""Writes a real journal into a store with the product's own codecs and no process: for tests.

Frames and segments end where the caller says. What is recorded is kept as model events too, so that
every moment of what was built has an independent image.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from host_agent.wire.asof import Statement, encode_asof
from host_agent.wire.crc import crc32c
from host_agent.wire.frame import Marker
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.names import Identity, asof_name, chain_name, key_name
from host_agent.wire.record import RECORD, Records
from host_agent.wire.seal import FrameSealer, SealedFrame
from host_agent.wire.segment import KIND_DATA, KIND_EPOCH, SegmentInfo, build_segment
from tests.model.model import (
    BEGIN,
    COMMIT,
    END,
    FLUSH,
    MARK,
    RESIZE,
    SYNC,
    WRITE,
    Event,
    Model,
)
from workers.storage.port import ObjectStore

START_AT = 1_767_225_600_000_000_000  # 2026-01-01
STATE_RECORDING, STATE_SYNCING = 1, 3
_KINDS = {"crash": 1, "application": 2, "tagged": 3}
_ON_DISK = (1, 2, 3, 4, 5, 6, 7)


@dataclass
class Recorded:
    """One record of the journal, as the model and the tests see it."""

    generation: int
    seq: int
    time: int
    event: Event


@dataclass
class _Pending:
    rows: list[tuple[int, ...]] = field(default_factory=list)
    payload: list[bytes] = field(default_factory=list)
    markers: list[Marker] = field(default_factory=list)


class JournalBuilder:
    """A journal in the making. Times in nanoseconds; everything random comes from `rng`."""

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity | None = None,
        tenant_key: TenantKey | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.store = store
        self.identity = identity or Identity("acme", "web", "host1")
        self.tenant_key = tenant_key or TenantKey.make(self.identity.tenant)
        self.group_key = GroupKey.make(self.tenant_key, self.identity.group)
        self.rng = rng or random.Random(1)
        self.model = Model()
        self.log: list[Recorded] = []
        self.generations: list[bytes] = []
        self.now = START_AT
        self.epoch = 0
        self.writer = b""
        self._state = 0
        self._pending = _Pending()
        self._frames: list[SealedFrame] = []
        self._hash = RecordHash()
        self._newest: SegmentInfo | None = None
        self._position = (bytes(16), 0, bytes(32))
        self._committed = (bytes(16), 0, 0, bytes(32), 0)
        self._data_key = b""
        self._sealer: FrameSealer | None = None
        self.claim()

    # -- the writer's side

    def claim(self) -> None:
        """A writer claims the chain: an epoch segment."""
        self.epoch += 1
        self.writer = self.rng.randbytes(16)
        generation, last, time, record_hash, state = self._committed
        self._put(
            SegmentInfo(
                KIND_EPOCH,
                *self._place(),
                generation,
                self.writer,
                last + 1,
                last,
                time,
                self.now,
                record_hash,
                state,
            ),
            [],
        )

    def _place(self) -> tuple[int, int, bytes, bytes]:
        newest = self._newest
        place = newest.place + 1 if newest else 1
        return place, self.epoch, newest.hash if newest else bytes(32), self.identity.hash

    def _put(self, info: SegmentInfo, frames: list[SealedFrame]) -> None:
        data, self._newest = build_segment(info, frames)
        self.store.put_if_absent(chain_name(self.identity, info.place), data)

    def segment(self) -> None:
        """Commit what is pending as the next segment."""
        self.frame()
        if not self._frames:
            return
        first, last = self._frames[0].header, self._frames[-1].header
        info = SegmentInfo(
            KIND_DATA,
            *self._place(),
            last.generation,
            self.writer,
            first.first_seq,
            last.last_seq,
            last.time_last,
            self.now,
            last.record_hash,
            last.state,
        )
        self._put(info, self._frames)
        self._committed = (
            last.generation,
            last.last_seq,
            last.time_last,
            last.record_hash,
            last.state,
        )
        self._frames = []

    def frame(self) -> None:
        """Seal what was recorded since the last frame."""
        pending, self._pending = self._pending, _Pending()
        if not pending.rows:
            return
        records = np.array(pending.rows, RECORD)
        self._hash.update(records)
        assert self._sealer is not None
        self._frames.append(
            self._sealer.seal(
                records,
                b"".join(pending.payload),
                state=self._state,
                record_hash=self._hash.digest(),
                markers=tuple(pending.markers),
            )
        )

    def add_frame(self, records: Records, payload: bytes) -> None:
        """A frame of records that are valid already; the model does not see them."""
        assert self._sealer is not None
        self._hash.update(records)
        self._frames.append(
            self._sealer.seal(records, payload, state=self._state, record_hash=self._hash.digest())
        )

    def connect(self) -> None:
        """A new connection: a new salt. Frames sealed before stay as they are."""
        self.frame()
        self._sealer = FrameSealer(
            self._data_key, self.identity, self.generations[-1], self.rng.randbytes(32)
        )

    # -- the tap's side

    def generation(
        self, disks: dict[str, int], *, goes_on: bool = False, cause: str = "first_start"
    ) -> None:
        """A new generation with BEGIN; `goes_on` names the one before as its predecessor."""
        self.segment()
        predecessor = self.generations[-1].hex() if goes_on else None
        name = self.rng.randbytes(16)
        self.generations.append(name)
        self._data_key, key_object = make_data_key(self.group_key, self.identity, name)
        self.store.put_if_absent(key_name(self.identity, name), key_object)
        self._hash = RecordHash()
        self.connect()
        self.model.start_generation(keep=goes_on)
        self.begin(disks, cause=cause, predecessor=predecessor)

    def begin(
        self, disks: dict[str, int], *, cause: str = "forced", predecessor: str | None = None
    ) -> int:
        """BEGIN; disks get their numbers in the order given."""
        seq = self.model.seq
        body = {
            "cause": cause,
            "generation": self.generations[-1].hex(),
            "predecessor": predecessor,
            "last_good": seq,
            "disks": [{"disk": n, "name": d, "size": s} for n, (d, s) in enumerate(disks.items())],
        }
        return self.record(Event(BEGIN, aux=seq, body=body))

    def end(self, unreadable: list[tuple[int, int, int]] | None = None) -> int:
        """END."""
        return self.record(Event(END, body={"bytes": 0, "unreadable": unreadable or []}))

    def mark(self, *, kind: str = "crash", tag: str | None = None, scope: str = "stream") -> str:
        """A checkpoint's marker; returns its id."""
        checkpoint = self.rng.randbytes(16).hex()
        body = {"checkpoint": checkpoint, "kind": kind, "tag": tag, "scope": scope}
        self.record(Event(MARK, body=body))
        return checkpoint

    def commit(self, checkpoint: str, seq: int) -> None:
        """A group checkpoint's commit, which names this stream at `seq`."""
        stream = f"{self.identity.group}/{self.identity.host}"
        positions = {stream: [self.generations[-1].hex(), seq]}
        self.record(
            Event(COMMIT, body={"checkpoint": checkpoint, "positions": positions, "held_us": {}})
        )

    def write(self, disk: int, offset: int, data: bytes, *, flags: int = 0) -> int:
        """WRITE."""
        return self.record(Event(WRITE, disk, offset, len(data), data, flags=flags))

    def sync(self, disk: int, offset: int, data: bytes, aux: int) -> int:
        """A block read by a sync that began after position `aux`."""
        return self.record(Event(SYNC, disk, offset, len(data), data, aux))

    def resize(self, disk: int, size: int) -> int:
        """RESIZE."""
        return self.record(Event(RESIZE, disk, size))

    def flush(self, disk: int) -> int:
        """FLUSH."""
        return self.record(Event(FLUSH, disk))

    def record(self, event: Event) -> int:
        """Any record: into the journal and into the model. Returns its sequence."""
        self.now += self.rng.randrange(1, 1_000_000)
        seq = self.model.apply(event)
        self.log.append(Recorded(len(self.generations) - 1, seq, self.now, event))
        payload = event.data
        if event.op >= BEGIN:
            payload = json.dumps(event.body).encode()
        self._note(event, seq)
        self._pending.payload.append(payload)
        self._pending.rows.append(
            (
                seq,
                self.now,
                event.offset,
                event.aux,
                event.length if event.op != RESIZE else 0,
                crc32c(payload) if payload else 0,
                len(payload),
                event.disk if event.op in _ON_DISK else 0xFFFF,
                event.op,
                event.flags,
            )
        )
        return seq

    def _note(self, event: Event, seq: int) -> None:
        if event.op == BEGIN:
            self._state = STATE_SYNCING
        elif event.op == END:
            self._state = STATE_RECORDING
        elif event.op in (MARK, COMMIT):
            body: dict[str, Any] = event.body or {}
            scope = 3 if event.op == COMMIT else 1 if body["scope"] == "stream" else 2
            kind = _KINDS[body.get("kind", "crash")]
            name = bytes.fromhex(body["checkpoint"])
            self._pending.markers.append(Marker(name, seq, self.now, scope, kind))

    def state_asof(self, number: int, *, state: str = "recording", seq: int | None = None) -> None:
        """Ingest's statement that everything up to now is stored."""
        stated = self.model.seq if seq is None else seq
        stream = Statement(self.generations[-1].hex(), stated, self.now, state)
        name = f"{self.identity.group}/{self.identity.host}"
        data = encode_asof(self.now, bytes(16), {name: stream})
        self.store.put_if_absent(asof_name(self.identity.tenant, number), data)


def replayed(info: SegmentInfo, **changes: Any) -> SegmentInfo:
    """A trailer with other fields, for tests that forge one."""
    return replace(info, **changes)
