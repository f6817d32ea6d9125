"""From frames to stored segments: one batch fills, at most one is on its way to the store.

A batch is committed when it is old enough, large enough, waited for, or the last. Only what the
store has acknowledged is reported as stored.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from host_agent.wire import limits
from host_agent.wire.failpoints import failpoint
from host_agent.wire.segment import SegmentInfo
from workers.ingest.batch import Batch, ReceivedFrame
from workers.ingest.chain import ChainWriter
from workers.ingest.decide import Admitted, StoredKey
from workers.ingest.errors import CloseCode, SessionEnded
from workers.ingest.facts import StreamFacts
from workers.ingest.tools import Tools


@dataclass(frozen=True)
class ClaimedStream:
    """A stream that this session may append to. `needs_key`: its generation has no segment yet."""

    admitted: Admitted
    chain: ChainWriter
    facts: StreamFacts
    needs_key: bool


class Committer:
    """Gathers a session's frames and commits them. `run` is its life, the rest never blocks."""

    def __init__(
        self,
        stream: ClaimedStream,
        tools: Tools,
        on_stored: Callable[[SegmentInfo], None],
        on_room: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._facts = stream.facts
        self._tools = tools
        self._on_stored = on_stored
        self._on_room = on_room
        self._needs_key = stream.needs_key
        self._open = Batch()
        self._committing: Batch | None = None
        self._taken = 0
        self._wanted_seq = 0
        self._committed_at = -math.inf
        self._closing = False
        self._changed = asyncio.Event()

    def take_room(self, length: int) -> bool:
        """Count a frame of `length` bytes as held if there is room; else `on_room` comes later."""
        if self._open.length >= limits.SEGMENT_BYTES_TARGET:
            return False
        if not self._tools.budget.take(length, holds_nothing=self._taken == 0):
            self._tools.budget.wait(self._on_room)
            return False
        self._taken += length
        return True

    def add(self, frame: ReceivedFrame) -> None:
        """A frame for which room was taken is complete."""
        self._open.add(frame, self._tools.clock.monotonic())
        self._facts.counters.frames_in += 1
        self._facts.counters.bytes_in += frame.length
        self._facts.received = frame.header.last_seq
        if len(self._open.frames) == 1 or self._is_due():
            self._changed.set()

    def commit_now(self, seq: int) -> None:
        """Somebody waits for `seq`: commit as soon as it is here."""
        self._wanted_seq = max(self._wanted_seq, seq)
        self._changed.set()

    def close(self) -> None:
        """Nothing more comes; `run` commits what is there and returns."""
        self._closing = True
        self._changed.set()

    def drop(self) -> None:
        """What waits is not committed; a commit that is under way ends by itself."""
        self._facts.counters.bytes_dropped += self._open.length
        length, self._open = self._open.length, Batch()
        self._give_back(length)

    def release(self) -> None:
        """Let go of all memory: what is not stored is dropped, and the agent sends it again."""
        counters = self._facts.counters
        for batch in (self._open, self._committing):
            if batch is not None:
                counters.bytes_dropped += batch.length
        self._open, self._committing = Batch(), None
        self._give_back(self._taken)

    async def run(self) -> None:
        """Commit until closed and empty; raises what makes going on impossible."""
        while await self._due():
            await self._commit()

    async def _due(self) -> bool:
        """Wait until the open batch is to be committed; False when nothing is left to do."""
        while not self._is_due():
            if self._closing:
                return False
            self._changed.clear()
            try:
                async with asyncio.timeout(self._wait_seconds()):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return True

    def _wait_seconds(self) -> float | None:
        """Until time alone makes the open batch due; None if it never does."""
        if not self._open.frames:
            return None
        at = self._open.opened_at + self._stream.admitted.commit_seconds
        if self._is_wanted():
            at = min(at, self._committed_at + self._tools.timing.commit_gap_seconds)
        return at - self._tools.clock.monotonic()

    def _is_wanted(self) -> bool:
        return self._facts.stored < self._wanted_seq <= self._open.last_seq

    def _is_due(self) -> bool:
        batch = self._open
        if not batch.frames:
            return False
        full = batch.length >= limits.SEGMENT_BYTES_TARGET
        return self._closing or full or (self._wait_seconds() or 0.0) <= 0

    async def _commit(self) -> None:
        failpoint("batch_after_due_before_commit")
        batch, self._open = self._open, Batch()
        self._committing = batch
        self._committed_at = self._tools.clock.monotonic()
        self._on_room()
        info = await self._tools.offload(lambda: self._store(batch))
        self._committing = None
        facts, now = self._facts, self._tools.clock.monotonic()
        facts.stored, facts.place = info.last_seq, info.place
        facts.stored_time_ns = info.time_newest
        facts.commit_age_seconds = round(now - batch.opened_at, 3)
        facts.counters.segments += 1
        facts.counters.bytes_stored += batch.length
        facts.rpo.stored(info.last_seq)
        self._on_stored(info)
        failpoint("stored_after_told_before_room")
        self._give_back(batch.length)
        self._on_room()

    def _store(self, batch: Batch) -> SegmentInfo:
        """In a thread: the generation's key first, then the segment."""
        if self._needs_key:
            admitted = self._stream.admitted
            key = self._stream.chain.make_key(admitted.generation, admitted.key_object)
            if key is not StoredKey.SAME:
                raise SessionEnded(
                    CloseCode.GENERATION_ENDED,
                    "Another writer stored another data key for this generation.",
                    hint="Begin a new generation.",
                )
            self._needs_key = False
        return self._stream.chain.append(batch)

    def _give_back(self, length: int) -> None:
        self._taken -= length
        self._tools.budget.give_back(length)
