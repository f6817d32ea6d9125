"""Sealed frames between ring and line: what the ring gave back before the journal had it.

Positions are kept without a gap from the first entry to the last. Under a new connection a frame is
opened and sealed again: never sent under the salt that it lies under here.
"""

from __future__ import annotations

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from host_agent.stream.batch import FrameLimits, count_for_frame, state_after
from host_agent.stream.errors import RingDamaged, SpoolFailed
from host_agent.stream.ports import DataKey, Random
from host_agent.stream.ring import RingFile, plain_records
from host_agent.stream.spoolfile import KIND_BASE, KIND_FRAME, Entry, SpoolFile
from host_agent.wire.errors import WireError
from host_agent.wire.frame import FrameHeader, header_length
from host_agent.wire.hashing import RecordHash
from host_agent.wire.names import Identity
from host_agent.wire.record import RECORD, Records, State
from host_agent.wire.seal import FrameOpener, FrameSealer, frame_keys

_SALT_BYTES = 32
_FRAME_HEAD_BYTES_MAX = 4096
_BASE_NAME = b"holdfast spool base v1"


class Spool:
    """The frames of one generation. Used by one thread at a time."""

    def __init__(self, file: SpoolFile, identity: Identity, key: DataKey, random: Random) -> None:
        self._file = file
        self._key = key.key
        self._opener = FrameOpener(key.key, identity)
        self._random = random
        # Each run seals under a salt of its own.
        salt = random.bytes(_SALT_BYTES)
        self._sealer = FrameSealer(key.key, identity, file.generation, salt)
        self._running: RecordHash | None = None
        self._open: tuple[int, Records, bytes] | None = None

    @property
    def first(self) -> int:
        """The first position that it holds; 0 if it is empty."""
        found = self._first_frame()
        return found.first if found else 0

    def _first_frame(self) -> Entry | None:
        return next((entry for entry in self._file.entries if entry.kind == KIND_FRAME), None)

    def oldest_time(self) -> int | None:
        """When its oldest record was made, nanoseconds UTC; None if it is empty. SpoolFailed."""
        found = self._first_frame()
        if found is None:
            return None
        head = self._file.read_head(found, _FRAME_HEAD_BYTES_MAX)
        try:
            return FrameHeader.unpack(head[: header_length(head)]).time_first
        except WireError:
            return None

    @property
    def last(self) -> int:
        """The last position; 0 if it is empty."""
        entries = self._file.entries
        return entries[-1].last if entries and entries[-1].kind == KIND_FRAME else 0

    @property
    def used_bytes(self) -> int:
        """Of the file."""
        return self._file.used_bytes

    @property
    def capacity_bytes(self) -> int:
        """Of the file."""
        return self._file.capacity_bytes

    @property
    def is_usable(self) -> bool:
        """Whether it takes more."""
        return not self._file.is_tainted

    def close(self) -> None:
        """Close the file; what it holds stays."""
        self._file.close()

    def clear(self) -> None:
        """Drop everything; SpoolFailed."""
        self._open = self._running = None
        self._file.drop(len(self._file.entries))

    # --- from the ring

    def move(self, ring: RingFile, head: int, running: RecordHash, limit: int) -> RecordHash:
        """Frames of the ring's records after `running.position`, about `limit` payload bytes.

        Returns the record hash after them; they are durable. SpoolFull, SpoolFailed, RingDamaged.
        """
        batch: list[tuple[Entry, bytes]] = []
        if not self._file.entries:
            batch.append(self._base(ring, running))
        assert not self.last or self.last == running.position, "positions have no gap"
        after, taken = running.copy(), 0
        while after.position < head and taken < limit:
            entry, body, plain = self._seal(ring, head, after)
            batch.append((entry, body))
            taken += plain + len(body)
        ring.check_current()
        self._file.append(batch)
        self._running = after
        return after.copy()

    def _base(self, ring: RingFile, running: RecordHash) -> tuple[Entry, bytes]:
        """The records since the anchor: without them no hash inside the first frames is known."""
        anchor, last = running.anchor, running.position
        rows = plain_records(ring.entries(anchor + 1, last)) if last > anchor else b""
        plain = rows if isinstance(rows, bytes) else rows.tobytes()
        salt = self._random.bytes(_SALT_BYTES)
        sealed = AESGCM(frame_keys(self._key, salt)[0]).encrypt(bytes(12), plain, _BASE_NAME)
        entry = Entry(KIND_BASE, anchor + 1, last, anchor, running.anchor_hash)
        return entry, salt + sealed

    def _seal(self, ring: RingFile, head: int, running: RecordHash) -> tuple[Entry, bytes, int]:
        first = running.position + 1
        bounds = FrameLimits()
        entries = ring.entries(first, min(head, first + 4095))
        entries = entries[: count_for_frame(entries, bounds)]
        records, payload = plain_records(entries), ring.payload(entries)
        anchor, digest = running.anchor, running.anchor_hash
        running.update(records)
        state = state_after(records, State.RECORDING)
        try:
            sealed = self._sealer.seal(records, payload, state=state, record_hash=running.digest())
        except WireError as error:
            raise RingDamaged(f"The ring holds what no reader takes: {error.message}") from None
        entry = Entry(KIND_FRAME, first, int(records[-1]["seq"]), anchor, digest)
        return entry, sealed.header_bytes + sealed.index + sealed.payload, len(payload)

    # --- to the line

    def take(self, first: int, bounds: FrameLimits) -> tuple[Records, bytes]:
        """Records from `first` on with their payloads, at most a frame; RingDamaged."""
        at, records, payload = self._opened(first)
        skipped = first - int(records[0]["seq"])
        ends = np.cumsum(records["payload_length"], dtype=np.uint64)
        begin = int(ends[skipped - 1]) if skipped else 0
        rest = records[skipped:]
        count = count_for_frame(rest, bounds)
        end = int(ends[skipped + count - 1])
        assert at == int(records[0]["seq"])
        return rest[:count], payload[begin:end]

    def _opened(self, seq: int) -> tuple[int, Records, bytes]:
        if self._open is not None and 0 <= seq - self._open[0] < len(self._open[1]):
            return self._open
        entry = next((e for e in self._file.entries if _holds(e, seq)), None)
        if entry is None:
            raise RingDamaged(f"The spool does not hold position {seq}.")
        records, payload = self._unseal(self._read(entry))
        if (int(records[0]["seq"]), int(records[-1]["seq"])) != (entry.first, entry.last):
            raise RingDamaged("A frame of the spool holds other positions than it says.")
        self._open = entry.first, records, payload
        return self._open

    def _read(self, entry: Entry) -> bytes:
        try:
            return self._file.read(entry)
        except SpoolFailed as error:
            # Nobody else has these records: the generation cannot go on.
            raise RingDamaged(error.message, hint=error.hint) from None

    def _unseal(self, body: bytes) -> tuple[Records, bytes]:
        try:
            head = body[: header_length(body)]
            header = FrameHeader.unpack(head)
            split = len(head) + header.index_sealed
            records = self._opener.open_index(header, head, body[len(head) : split])
            return records, self._opener.open_payload(header, head, body[split:])
        except WireError as error:
            raise RingDamaged(f"A frame of the spool cannot be opened: {error.message}") from None

    def hash_at(self, position: int) -> RecordHash:
        """The record hash at a position that it holds, or right before its first; RingDamaged."""
        if self._running is not None and self._running.position == position:
            return self._running.copy()
        entries = list(self._file.entries)
        before = [e for e in entries if e.kind == KIND_FRAME and e.first <= position + 1]
        if not before:
            raise RingDamaged(f"The spool does not reach back to {position}.")
        within = before[-1]
        running = RecordHash(within.anchor, within.anchor_hash)
        for entry in entries:
            if running.position >= position:
                break
            if entry.last > running.position:
                rows = self._rows(entry)
                wanted = (rows["seq"] > running.position) & (rows["seq"] <= position)
                running.update(rows[wanted])
        if running.position != position:
            raise RingDamaged(f"The spool cannot tell the record hash at {position}.")
        return running

    def _rows(self, entry: Entry) -> Records:
        body = self._read(entry)
        if entry.kind == KIND_FRAME:
            return self._unseal(body)[0]
        aead = AESGCM(frame_keys(self._key, body[:_SALT_BYTES])[0])
        try:
            plain = aead.decrypt(bytes(12), body[_SALT_BYTES:], _BASE_NAME)
        except InvalidTag:
            raise RingDamaged("The spool's base was changed after it was sealed.") from None
        return np.frombuffer(plain, RECORD)

    def drop_stored(self, stored: int) -> None:
        """The journal has everything up to `stored`: give back what nothing needs; SpoolFailed."""
        entries = list(self._file.entries)
        if not entries:
            return
        if stored >= entries[-1].last:
            self.clear()
            return
        # The record hash at any later position is told from the anchor before its frame.
        current = next(e for e in entries if e.kind == KIND_FRAME and e.last > stored)
        needed = next(n for n, e in enumerate(entries) if e.last > current.anchor or e is current)
        if needed > len(entries) // 8:
            self._file.drop(needed)


def _holds(entry: Entry, seq: int) -> bool:
    return entry.kind == KIND_FRAME and entry.first <= seq <= entry.last
