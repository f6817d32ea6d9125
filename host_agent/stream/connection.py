"""One connection to an ingest, from WELCOME to its end.

Tasks that each do one thing: make the next frame, send, listen, give ring space back, read what a
sync needs. The next frame is read, checked, compressed and sealed beside the loop while this one is
on its way; at most one waits. Whatever ends a task ends the connection, and says why by its error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial

from host_agent.stream.batch import FrameLimits
from host_agent.stream.errors import LinkLost, PeerClosed, StreamPaused
from host_agent.stream.ledger import Freed, Ledger, Sent
from host_agent.stream.pace import frame_bytes
from host_agent.stream.parts import FRAME_RECORDS, OpenRing, Shared
from host_agent.stream.ports import Link
from host_agent.stream.prepare import Prepared, Preparer
from host_agent.stream.readback import Readback
from host_agent.stream.signals import Signal, run_together
from host_agent.stream.spooling import give_back
from host_agent.stream.syncing import Journal, SyncDriver
from host_agent.wire.errors import WireError
from host_agent.wire.failpoints import failpoint
from host_agent.wire.limits import RECORD_PAYLOAD_BYTES_MAX
from host_agent.wire.message import (
    Close,
    CommitNow,
    Fetched,
    Message,
    Probe,
    Probed,
    Received,
    Stored,
    Throttle,
    pack,
)

#: The tap's word on what came while records waited may be so late, as a share of their wait.
_LATE_SHARE = 0.25
_LAST_WORDS_SECONDS = 0.5
#: A connection over which ingest still speaks after this long is a good one, idle or not.
_HEALTHY_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """A message for ingest, and when what it says was asked for; None if it does not age."""

    message: Message
    asked_at: float | None = None


class Connection:
    """Runs until something ends it. Made anew for each WELCOME."""

    def __init__(
        self,
        ring: OpenRing,
        link: Link,
        ledger: Ledger,
        preparer: Preparer,
        shared: Shared,
    ) -> None:
        self._ring = ring
        self._link = link
        self._ledger = ledger
        self._preparer = preparer
        self._settings, self._means = shared.settings, shared.means
        self._buckets, self._figures = shared.buckets, shared.figures
        self._on_stored, self._on_healthy = shared.on_stored, shared.on_healthy
        # What an ingest asked for ends with its connection.
        self._buckets.throttle.set_rate(None, self._means.clock.monotonic())
        self._control: deque[Answer] = deque()
        self._ready: Prepared | None = None
        self._wake = Signal()
        self._slot = Signal()
        self._freeing = Signal()
        self._to_free: Freed | None = None
        self._urgent = 0
        self._asked: int | None = None
        self._probes = Signal()
        self._readback = Readback(self._say)
        self._sync = SyncDriver(
            ring, shared, ledger, preparer, Journal(self._readback, self.commit_now)
        )

    def begin_at(self, seq: int, place: int) -> None:
        """WELCOME: the journal has everything up to `seq`, at the latest at `place`.

        On a line over which nothing is to be sent no confirmation would ever say so.
        """
        self._readback.on_stored(seq, place)

    @property
    def ledger(self) -> Ledger:
        """What is in flight."""
        return self._ledger

    async def run(self) -> None:
        """Work until the connection ends; raises what ended it."""
        try:
            await run_together(
                self._prepare_frames(),
                self._send_all(),
                self._listen(),
                self._answer_probes(),
                self._free_stored(),
                self._sync.run(),
            )
        finally:
            await self._link.close()

    def commit_now(self, seq: int) -> None:
        """Somebody waits for `seq`: hurry it, and have ingest commit it at once."""
        self._urgent = max(self._urgent, seq)
        self._say(CommitNow(seq))
        self._ring.changed.notify()

    def finish(self, message: str) -> None:
        """End in an orderly way after the frame that is on its way; `run` raises StreamPaused."""
        self._say(Close("stopping", message, "", 0.0))

    def wake(self) -> None:
        """Limits changed."""
        self._wake.notify()

    # --- making frames

    async def _prepare_frames(self) -> None:
        while True:
            await self._records_ready()
            make = partial(self._preparer.prepare, self._ring.state.head, self._bounds())
            async with self._ring.reading:
                frame = await self._means.offload(make)
            self._sync.on_prepared(frame)
            self._note_size(frame)
            while self._ready is not None:
                await self._slot.wait()
            self._ready = frame
            self._wake.notify()

    async def _records_ready(self) -> None:
        first = self._preparer.next_seq
        while self._ring.state.head < first:
            await self._ring.changed.wait()
        linger = self._settings.linger_seconds
        deadline = self._means.clock.monotonic() + linger
        while not self._is_enough(first):
            left = deadline - self._means.clock.monotonic()
            if left <= 0 or not await self._ring.changed.wait(left + _LATE_SHARE * linger):
                return

    def _note_size(self, frame: Prepared) -> None:
        """How many records such as these fill a frame, or its half at least."""
        is_full = frame.last_seq < self._ring.state.head
        records = min(frame.records, FRAME_RECORDS) if is_full else FRAME_RECORDS
        self._ring.frame_records = max(1, records)

    def _is_enough(self, first: int) -> bool:
        """Whether a frame is worth its while already, or must not wait."""
        is_many = self._ring.state.head - first + 1 >= self._ring.frame_records
        # A sync's blocks are large and nobody's latest work: the line should never idle for them.
        hurries = self._urgent >= first or self._ring.wants_sync
        backlog = self._preparer.backlog_bytes(self._ring.state.head)
        return is_many or hurries or backlog >= self._bounds().plain

    def _bounds(self) -> FrameLimits:
        rates = [b.rate for b in (self._buckets.replication, self._buckets.throttle) if b.rate]
        rate = min(rates) if rates else None
        # Both parts of a frame may be as large as the payload in the worst case.
        largest = max(RECORD_PAYLOAD_BYTES_MAX, self._ledger.terms.frame_bytes_max // 2)
        return FrameLimits(plain=frame_bytes(rate, min(largest, self._settings.frame_bytes_max)))

    def _unsent(self) -> int:
        return self._ring.state.head - self._ledger.sent

    # --- sending

    async def _send_all(self) -> None:
        try:
            await self._send_loop()
        except LinkLost:
            # If ingest said why before it closed, the listening task is about to read it.
            await asyncio.sleep(_LAST_WORDS_SECONDS)
            raise

    async def _send_loop(self) -> None:
        clock, waits = self._means.clock, self._figures.waits
        while True:
            if self._control:
                await self._send_control(self._control.popleft())
                continue
            why, seconds = self._hold_back()
            began = clock.monotonic()
            if why:
                await self._wake.wait(seconds)
            else:
                why = "network"
                await self._send_frame()
            now = clock.monotonic()
            waits.add(why, now - began, now)

    def _hold_back(self) -> tuple[str, float | None]:
        """What the next frame waits for, and how long at most; nothing if it may leave."""
        if self._ready is None:
            return ("guest" if self._unsent() <= 0 else "prepare"), None
        if not self._ledger.has_room(self._ready.size):
            return "window", None
        now = self._means.clock.monotonic()
        wait = self._buckets.throttle.wait_seconds(now)
        if self._ready.plain > self._ready.from_sync or not self._ready.from_sync:
            wait = max(wait, self._buckets.replication.wait_seconds(now))
        return ("pace", wait) if wait > 0 else ("", None)

    async def _send_frame(self) -> None:
        frame, self._ready = self._ready, None
        assert frame is not None
        self._slot.notify()
        self._account(frame)
        failpoint("frame_after_sealed_before_sent")
        await self._link.send(frame.chunks)
        failpoint("frame_after_sent_before_stored")

    def _account(self, frame: Prepared) -> None:
        now = self._means.clock.monotonic()
        of_sync = frame.size * frame.from_sync / max(1, frame.plain)
        self._buckets.replication.take(frame.size - of_sync, now)
        self._buckets.throttle.take(frame.size, now)
        self._ledger.add(
            Sent(
                frame.last_seq,
                frame.size,
                frame.records,
                frame.plain,
                frame.record_hash,
                frame.anchor,
                frame.anchor_hash,
            )
        )
        counters = self._figures.counters
        counters.frames_sent += 1
        self._figures.tally.on_sent(frame.first_seq, frame.last_seq)
        counters.plain_bytes_sent += frame.plain
        counters.wire_bytes_sent += frame.size
        counters.sync_bytes_sent += frame.from_sync
        counters.markers_sent += frame.markers
        self._figures.wire_rate.add(frame.size, now)
        self._figures.plain_rate.add(frame.plain, now)

    def _say(self, message: Message, asked_at: float | None = None) -> None:
        self._control.append(Answer(message, asked_at))
        self._wake.notify()

    async def _send_control(self, answer: Answer) -> None:
        if answer.asked_at is not None and self._is_stale(answer.asked_at):
            # The answer waited behind a frame: ask again rather than state what is no longer known.
            assert isinstance(answer.message, Probed)
            self._probe(answer.message.probe)
            return
        await self._link.send([pack(answer.message)])
        if isinstance(answer.message, Probed):
            self._figures.counters.probes_answered += 1
        if isinstance(answer.message, Close):
            raise StreamPaused(answer.message.message)

    def _is_stale(self, asked_at: float) -> bool:
        return self._means.clock.monotonic() - asked_at > self._settings.state_seconds_max

    # --- listening

    async def _listen(self) -> None:
        healthy_at: float | None = self._means.clock.monotonic() + _HEALTHY_SECONDS
        while True:
            try:
                async with asyncio.timeout(self._settings.silence_seconds):
                    message = await self._link.receive()
            except TimeoutError:
                raise LinkLost(
                    f"{self._link.address} was silent for {self._settings.silence_seconds:g} s.",
                    retryable=True,
                ) from None
            self._handle(message)
            if healthy_at is not None and self._means.clock.monotonic() >= healthy_at:
                healthy_at = None
                self._on_healthy()

    def _handle(self, message: Message) -> None:
        match message:
            case Received():
                self._ledger.on_received(message.seq)
                self._wake.notify()
            case Stored():
                self._stored(message)
            case Probe():
                self._probe(message.probe)
            case Throttle():
                rate = float(message.bytes_per_second) or None
                self._buckets.throttle.set_rate(rate, self._means.clock.monotonic())
                self._wake.notify()
            case Fetched():
                self._figures.counters.readback_bytes += len(message.data)
                self._readback.on_fetched(message)
            case Close():
                raise PeerClosed(message)
            case _:
                raise WireError(f"Ingest sent {type(message).__name__}, which only agents send.")

    def _stored(self, message: Stored) -> None:
        ignored = self._ledger.ignored
        freed, frames = self._ledger.on_stored(message)
        counters = self._figures.counters
        counters.acknowledgements_ignored += self._ledger.ignored - ignored
        if freed is None:
            return
        counters.plain_bytes_stored += sum(frame.plain for frame in frames)
        failpoint("stored_after_heard_before_free")
        self._to_free = freed
        self._freeing.notify()
        self._wake.notify()
        self._on_stored(freed.seq)
        self._readback.on_stored(freed.seq, message.place)

    # --- what the tap says

    def _probe(self, number: int) -> None:
        if self._asked is not None:
            self._figures.counters.probes_dropped += 1
        self._asked = number
        self._probes.notify()

    async def _answer_probes(self) -> None:
        while True:
            if self._asked is None:
                await self._probes.wait()
                continue
            number, self._asked = self._asked, None
            await self._answer_probe(number)

    async def _answer_probe(self, number: int) -> None:
        asked_at = self._means.clock.monotonic()
        state = await self._ring.tap.state()
        self._ring.see(state)
        self._figures.recovery.observe(state, asked_at, self._ledger.stored)
        failpoint("probe_after_asked_before_answered")
        answer = Probed(number, state.generation.hex(), state.head, int(state.state))
        self._say(answer, asked_at)

    async def _free_stored(self) -> None:
        while True:
            if self._to_free is None:
                await self._freeing.wait()
                continue
            freed, self._to_free = self._to_free, None
            await give_back(self._ring, freed, self._means)
            failpoint("stored_after_free_before_next")
