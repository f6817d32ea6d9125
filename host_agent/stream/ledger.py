"""What was sent on a connection and is not stored yet: bounded, and decides what is freed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from host_agent.stream.errors import StoredDiffers
from host_agent.wire.errors import WireError
from host_agent.wire.message import Stored

#: Frames that may be on their way: 16,384 entries are 4 MiB of memory.
FRAMES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame that left: enough to judge a confirmation of it. `size` in bytes on the wire."""

    last_seq: int
    size: int
    records: int
    plain: int
    record_hash: bytes
    anchor: int
    anchor_hash: bytes


@dataclass(frozen=True, slots=True)
class Freed:
    """What the tap may take back, and from where the record hash can be continued."""

    seq: int
    anchor: int
    anchor_hash: bytes


@dataclass(frozen=True, slots=True)
class Terms:
    """What ingest stated in WELCOME. `window`: bytes on the wire that it takes unstored."""

    epoch: int
    window: int
    frame_bytes_max: int


class Ledger:
    """Frames in flight on one connection, of one epoch and generation."""

    def __init__(self, terms: Terms, generation: bytes, stored: int) -> None:
        self.terms = terms
        self.epoch = terms.epoch
        self.stored = stored
        self.received = stored
        self.sent = stored
        self.ignored = 0
        self._generation = generation.hex()
        self._frames: deque[Sent] = deque()
        self._unstored_bytes = 0

    @property
    def unstored_bytes(self) -> int:
        """Bytes on the wire that are not in the store."""
        return self._unstored_bytes

    def has_room(self, size: int) -> bool:
        """Whether a frame of `size` bytes may leave now. One frame always may."""
        if len(self._frames) >= FRAMES_MAX:
            return False
        return not self._frames or self._unstored_bytes + size <= self.terms.window

    def add(self, frame: Sent) -> None:
        """A frame is about to leave."""
        assert frame.last_seq > self.sent, "frames leave in order"
        self.sent = frame.last_seq
        self._frames.append(frame)
        self._unstored_bytes += frame.size

    def on_received(self, seq: int) -> None:
        """Ingest has everything up to `seq` in memory; WireError if it was never sent.

        Only now and then, and for diagnosis alone: ingest may still lose it.
        """
        if seq > self.sent:
            raise WireError(f"Ingest received {seq}, but only {self.sent} was sent.")
        self.received = max(self.received, seq)

    def on_stored(self, message: Stored) -> tuple[Freed | None, list[Sent]]:
        """The store has everything up to the message's `seq`.

        Returns what may be freed and the frames that it covers. StoredDiffers if the journal's
        record hash there is not ours: then nothing may be freed. WireError for what was never sent.
        """
        if message.epoch != self.epoch or message.generation != self._generation:
            self.ignored += 1
            return None, []
        if message.seq > self.sent:
            raise WireError(f"Ingest stored {message.seq}, but only {self.sent} was sent.")
        if message.seq <= self.stored:
            return None, []
        done: list[Sent] = []
        while self._frames and self._frames[0].last_seq <= message.seq:
            done.append(self._frames.popleft())
        if not done or done[-1].last_seq != message.seq:
            raise WireError(f"Ingest stored up to {message.seq}, which is inside a frame.")
        newest = done[-1]
        if newest.record_hash.hex() != message.record_hash:
            raise StoredDiffers(f"The journal's record hash at {message.seq} is not the ring's.")
        self._unstored_bytes -= sum(frame.size for frame in done)
        self.stored = message.seq
        self.on_received(message.seq)
        return Freed(newest.last_seq, newest.anchor, newest.anchor_hash), done
