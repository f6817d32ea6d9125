"""Drives a sync: asks the tap for blocks as fast as limits, line and ring allow, until END."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from host_agent.stream.comparing import Comparison
from host_agent.stream.ledger import Ledger
from host_agent.stream.parts import OpenRing, Shared
from host_agent.stream.ports import ComparingTap, SyncStep
from host_agent.stream.prepare import Prepared, Preparer
from host_agent.stream.readback import Readback
from host_agent.stream.signals import Signal
from host_agent.stream.triggers import Trigger, meaning_of
from host_agent.wire.record import State
from host_agent.wire.tapctl import TapRefused

#: How long to wait when the ring has no room, the line is behind, or the tap had nothing to do.
_BUSY_SECONDS = 0.02
_BUDGET_BYTES_MIN = 64 * 1024
#: Records that may be ahead of the line: zeroes have no payload, but take entries of the ring.
_AHEAD_RECORDS_MAX = 16_384


@dataclass(frozen=True)
class Journal:
    """The journal's side of a connection: what it gives back, and how to hurry a position."""

    readback: Readback
    commit_now: Callable[[int], None]


class SyncDriver:
    """Keeps a little of the sync ahead of the line, never so much that guests' writes lack room.

    Where what is to be read may be the same as in the journal, a comparison runs ahead of it.
    """

    def __init__(
        self,
        ring: OpenRing,
        shared: Shared,
        ledger: Ledger,
        preparer: Preparer,
        journal: Journal,
    ) -> None:
        self._ring = ring
        self._shared = shared
        self._settings, self._clock = shared.settings, shared.means.clock
        self._bucket = shared.buckets.sync
        self._progress = shared.figures.sync
        self._ledger = ledger
        self._preparer = preparer
        self._journal = journal
        self._ratio = 1.0
        self._moved = Signal()
        self._comparison: Comparison | None = None
        self._comparing: asyncio.Task[None] | None = None

    def on_prepared(self, frame: Prepared) -> None:
        """A frame was made. What of it a sync read counts against the sync's limit."""
        self._moved.notify()
        if frame.from_sync:
            self._bucket.take(
                frame.size * frame.from_sync / max(1, frame.plain), self._clock.monotonic()
            )
            self._ratio += 0.2 * (frame.size / max(1, frame.plain) - self._ratio)

    async def run(self) -> None:
        """Never returns; raises TapGone, RingChanged or LinkLost."""
        try:
            while True:
                if not self._ring.wants_sync:
                    await self._stop_comparing()
                    self._progress.on_recording()
                    await self._ring.changed.wait()
                    continue
                budget = self._budget()
                wait = self._hold_back(budget)
                if wait > 0:
                    await self._moved.wait(wait)
                    continue
                await self._step(budget)
        finally:
            await self._stop_comparing()

    async def _step(self, budget: int) -> None:
        tap = self._ring.tap
        try:
            if isinstance(tap, ComparingTap) and self._wants_comparison():
                await self._begin_comparing(tap)
            before = self._frontier()
            if before is not None and isinstance(tap, ComparingTap):
                step = await tap.sync_before(budget, before)
            else:
                step = await tap.sync(budget)
        except TapRefused as refusal:
            if not refusal.retryable:
                raise
            # A request of a connection that broke is still being served.
            await self._ring.changed.wait(_BUSY_SECONDS)
            return
        await self._see(step)
        if step.busy or (step.read == 0 and self._ring.wants_sync):
            await self._ring.changed.wait(_BUSY_SECONDS)

    async def _see(self, step: SyncStep) -> None:
        # The answer does not say how far the stream is now.
        self._ring.see(await self._ring.tap.state())
        self._account(step)

    # --- comparing

    def _frontier(self) -> tuple[int, int] | None:
        """What a sync may read up to; raises what ended the comparison and the connection."""
        if self._comparing is not None and self._comparing.done():
            self._comparing.result()
        return self._comparison.frontier if self._comparison is not None else None

    def _wants_comparison(self) -> bool:
        """Whether an interval is to begin, or runs unknown to us, that may find things the same."""
        cause = self._ring.state.cause
        if cause == Trigger.FIRST_START and self._ring.opened.predecessor is None:
            return False
        meaning = meaning_of(cause)
        is_likely = meaning is not None and meaning.compares
        is_wanted = (
            is_likely or self._progress.compared.is_unfinished
        ) and not self._progress.is_full
        return is_wanted and (self._comparison is None or self._ring.state.state == State.DIRTY)

    async def _begin_comparing(self, tap: ComparingTap) -> None:
        """Begin the interval, or learn where it began, and compare while it lasts."""
        step = await self._ring.tap.sync(0)
        await self._see(step)
        if step.busy or step.state != State.SYNCING:
            return
        if self._comparison is None or self._comparison.begin != step.begin:
            await self._stop_comparing()
            made = Comparison(self._ring, tap, step.begin, self._shared, self._journal.readback)
            self._comparison = made
            self._comparing = asyncio.create_task(made.run())
            self._journal.commit_now(step.begin)

    async def _stop_comparing(self) -> None:
        task, self._comparing, self._comparison = self._comparing, None, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _hold_back(self, budget: int) -> float:
        unsent = self._ring.state.head - self._ledger.sent
        if self._ring.state.state == State.DIRTY and unsent > 0:
            # What guests wrote before comes first: it completes the last good point.
            return _BUSY_SECONDS
        ahead_max = self._settings.sync_ahead_bytes if self._bucket.rate is None else budget
        backlog = self._preparer.backlog_bytes(self._ring.state.head)
        if unsent >= _AHEAD_RECORDS_MAX or backlog >= ahead_max:
            return _BUSY_SECONDS
        return self._bucket.wait_seconds(self._clock.monotonic())

    def _budget(self) -> int:
        rate = self._bucket.rate
        if rate is None:
            return self._settings.sync_chunk_bytes
        # A tenth of a second of the line, in disk bytes as they compressed of late.
        wanted = int(rate * 0.1 / max(self._ratio, 0.05))
        return min(self._settings.sync_chunk_bytes, max(_BUDGET_BYTES_MIN, wanted))

    def _account(self, step: SyncStep) -> None:
        cause = self._ring.state.cause
        self._progress.on_step(step, cause, self._clock.monotonic())
