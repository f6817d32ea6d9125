"""From positions of the ring to a sealed frame: read, check, hash, compress, seal.

Runs beside the loop, one call at a time for a connection. All of it is in C and over whole batches;
nothing here is done for each write.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host_agent.stream.batch import (
    FrameLimits,
    count_for_frame,
    markers_of,
    state_after,
    sync_bytes,
)
from host_agent.stream.errors import JournalDiffers, RingDamaged
from host_agent.stream.parts import Watch
from host_agent.stream.ports import DataKey
from host_agent.stream.ring import RingFile, plain_records
from host_agent.stream.spool import Spool
from host_agent.wire.errors import WireError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.message import pack_frame_head
from host_agent.wire.names import Identity
from host_agent.wire.record import Records, State
from host_agent.wire.seal import FrameSealer

#: Entries read at a time where only the record hash is wanted: 1 MiB.
_HASH_STEP = 16_384
#: Entries looked at for a frame unless the one before held more: a full frame of 4 KiB writes.
_LOOK_MIN = 1024


@dataclass(frozen=True)
class Prepared:
    """A frame that is ready to leave. `plain` and `from_sync` in payload bytes."""

    chunks: tuple[bytes | memoryview, ...]
    size: int
    first_seq: int
    last_seq: int
    records: int
    plain: int
    from_sync: int
    markers: int
    record_hash: bytes
    anchor: int
    anchor_hash: bytes


def hash_at(ring: RingFile, anchor: int, anchor_hash: bytes, position: int) -> RecordHash:
    """The record hash at `position`, continued from an anchor that the tap keeps."""
    running = RecordHash(anchor, anchor_hash)
    while running.position < position:
        last = min(position, running.position + _HASH_STEP)
        running.update(plain_records(ring.entries(running.position + 1, last)))
    return running


class Preparer:
    """Makes the frames of one connection, in order, from `running.position` + 1 on."""

    def __init__(
        self,
        ring: RingFile,
        sealer: FrameSealer,
        running: RecordHash,
        state: State,
        watch: Watch | None = None,
    ) -> None:
        self._ring = ring
        #: What the ring gave back and the line has not taken yet.
        self.spool: Spool | None = None
        self._sealer = sealer
        self._running = running
        self._state = state
        self._watch = watch
        self._look = _LOOK_MIN
        self._payload_end: int | None = None

    def backlog_bytes(self, head: int) -> int:
        """Payload bytes up to record `head` that no frame holds yet; 0 before the first frame.

        While frames come from the spool, more than there are: what it holds has left the ring.
        """
        if self._payload_end is None or self.next_seq > head:
            return 0
        return max(0, self._ring.payload_head() - self._payload_end)

    @property
    def next_seq(self) -> int:
        """The first sequence that the next frame holds."""
        return self._running.position + 1

    @property
    def anchor(self) -> tuple[int, bytes]:
        """From where the record hash can be continued."""
        return self._running.anchor, self._running.anchor_hash

    def prepare(self, head: int, bounds: FrameLimits) -> Prepared:
        """The next frame, of records up to `head` at most; RingDamaged."""
        first = self.next_seq
        if self.spool is not None and first <= self.spool.last:
            records, payload = self.spool.take(first, bounds)
        else:
            records, payload = self._from_ring(first, head, bounds)
        markers = markers_of(records, payload)
        if self._watch is not None:
            self._watch(records, payload)
        self._running.update(records)
        self._state = state_after(records, self._state)
        digest = self._running.digest()
        try:
            sealed = self._sealer.seal(
                records, payload, state=self._state, record_hash=digest, markers=markers
            )
        except WireError as error:
            raise RingDamaged(f"The ring holds what no reader takes: {error.message}") from None
        length = len(sealed.header_bytes) + len(sealed.index) + len(sealed.payload)
        start = pack_frame_head(length) + sealed.header_bytes + sealed.index
        return Prepared(
            chunks=(start, sealed.payload) if sealed.payload else (start,),
            size=len(start) + len(sealed.payload),
            first_seq=first,
            last_seq=int(records[-1]["seq"]),
            records=len(records),
            plain=len(payload),
            from_sync=sync_bytes(records),
            markers=len(markers),
            record_hash=digest,
            anchor=self._running.anchor,
            anchor_hash=self._running.anchor_hash,
        )

    def _from_ring(self, first: int, head: int, bounds: FrameLimits) -> tuple[Records, bytes]:
        last = min(head, first + min(bounds.records, self._look) - 1)
        entries = self._ring.entries(first, last)
        entries = entries[: count_for_frame(entries, bounds)]
        # Look as far as the last frame's size suggests, not at all that the ring has.
        self._look = max(_LOOK_MIN, 2 * len(entries))
        records = plain_records(entries)
        payload = self._ring.payload(entries)
        self._ring.check_current()
        self._note_payload_end(entries)
        return records, payload

    def _note_payload_end(self, entries: Records) -> None:
        rows = np.flatnonzero(entries["payload_length"])
        if len(rows):
            last = entries[int(rows[-1])]
            self._payload_end = int(last["payload_pos"]) + int(last["payload_length"])


@dataclass(frozen=True)
class Begin:
    """What a connection's preparer begins with."""

    anchor: int
    anchor_hash: bytes
    first: int
    verify: bytes | None
    state: State
    watch: Watch | None = None
    spool: Spool | None = None


def make_preparer(
    ring: RingFile, identity: Identity, key: DataKey, salt: bytes, begin: Begin
) -> Preparer:
    """A preparer from position `begin.first`; JournalDiffers if our hash before it is another."""
    if begin.spool is not None and begin.first <= begin.spool.last:
        running = begin.spool.hash_at(begin.first - 1)
    else:
        running = hash_at(ring, begin.anchor, begin.anchor_hash, begin.first - 1)
    ring.check_current()
    if begin.verify is not None and running.digest() != begin.verify:
        raise JournalDiffers(f"The journal's record hash at {begin.first - 1} is not the ring's.")
    sealer = FrameSealer(key.key, identity, ring.header.generation, salt)
    preparer = Preparer(ring, sealer, running, begin.state, begin.watch)
    preparer.spool = begin.spool
    return preparer
