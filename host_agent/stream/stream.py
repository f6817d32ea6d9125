"""One protection group's stream, for as long as the agent runs.

Opens the ring, connects, runs connections, and does what the Decider says when one ends. The tap
goes on without it at all times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass

from host_agent.stream.connection import Connection
from host_agent.stream.errors import (
    DataKeyMissing,
    NotAttached,
    NotComparable,
    RingChanged,
    SpoolFailed,
    StreamPaused,
)
from host_agent.stream.greeting import begin, greet, say_goodbye
from host_agent.stream.ledger import Freed, Ledger, Terms
from host_agent.stream.parts import (
    Buckets,
    Figures,
    Means,
    OpenRing,
    Shared,
    StreamSettings,
    Watch,
)
from host_agent.stream.ports import (
    ComparingTap,
    ConnectTap,
    Dial,
    Keys,
    Link,
    RingOpened,
    SyncStep,
    Tap,
    TapState,
)
from host_agent.stream.ring import RingFile
from host_agent.stream.session import Decider, Renew, Reopen, Retry, Stop
from host_agent.stream.signals import Signal, run_together
from host_agent.stream.spooling import Spooler, give_back, open_spool
from host_agent.stream.triggers import Trigger
from host_agent.wire.errors import HoldfastError
from host_agent.wire.failpoints import failpoint
from host_agent.wire.message import Welcome

#: Nobody tells the agent of a disk that is attached without it; it looks this often.
_LOOK_SECONDS = 5.0
#: A busy stream's tap is asked when about so many frames can be made one after another.
_FRAMES_AT_ONCE = 3


@dataclass(frozen=True)
class Doors:
    """How to reach what a stream stands between."""

    connect_tap: ConnectTap
    dial: Dial
    addresses: int
    keys: Keys


class Stream:
    """Run `run` as a task; everything else may be called from the same loop meanwhile."""

    def __init__(
        self,
        settings: StreamSettings,
        doors: Doors,
        means: Means,
        buckets: Buckets,
        watch: Watch | None = None,
    ) -> None:
        self.settings = settings
        self.figures = Figures(means.clock)
        self.buckets = buckets
        self.decider = Decider(means.random, doors.addresses)
        self.phase = "starting"
        self.failure: HoldfastError | None = None
        self.ring: OpenRing | None = None
        self.connection: Connection | None = None
        self.address: str | None = None
        self.epoch: int | None = None
        self.is_paused = False
        self.spooler: Spooler | None = None
        self.spool_failure: HoldfastError | None = None
        self._doors, self._means = doors, means
        self._shared = Shared(
            settings,
            means,
            buckets,
            self.figures,
            self._on_stored,
            self.decider.on_success,
            doors.keys.unwrap,
            watch,
        )
        self._is_ending = False
        self._renew: str | None = None
        self._ends = 0
        self._wanted: tuple[bytes, int] = (b"", 0)
        self._tidied: bytes = b""
        self._nudge = Signal()
        self._stored_changed = Signal()

    @property
    def stored(self) -> int:
        """The newest position that is in the store."""
        return self.figures.tally.stored

    @property
    def is_stopped(self) -> bool:
        """Whether it waits for a person."""
        return self.decider.alert is not None and self.decider.alert.stops

    # --- what others ask of it

    def pause(self) -> None:
        """Stop sending after the frame that is on its way. The tap goes on recording."""
        self.is_paused = True
        self._end_connection("the stream was paused")

    def resume(self) -> None:
        """Go on after a pause, or after what stopped the stream was looked at."""
        self.is_paused = False
        self.decider.release()
        self._nudge.notify()

    def reconnect(self, why: str) -> None:
        """End the connection after the frame that is on its way, and make another at once."""
        self._end_connection(why)

    def resync(self) -> None:
        """Begin a new generation and bring everything over again."""
        self._renew = "forced"
        self.decider.release()
        self._end_connection("a new generation was asked for")

    async def force_sync(self, disk: str | None, *, is_full: bool) -> SyncStep:
        """Have everything of one disk, or of all, read again in this generation.

        It is compared with the journal first, unless `is_full`. The tap's errors.
        """
        ring = self.ring
        if ring is None:
            raise self._not_open()
        if not isinstance(ring.tap, ComparingTap):
            raise NotComparable(
                "Only the whole of a group with several copies can be synced again.",
                hint=f"Run: holdfast-agent resync {self.settings.identity.group}",
            )
        step = await ring.tap.force(disk)
        self.figures.sync.is_full = is_full
        ring.see(await ring.tap.state())
        return step

    def nudge(self) -> None:
        """Something changed, a disk was attached perhaps: do not wait any longer."""
        self._nudge.notify()

    def set_limits(self, replication: float | None, sync: float | None) -> None:
        """New limits, bytes a second on the wire; None without one. In effect at once."""
        now = self._means.clock.monotonic()
        self.buckets.replication.set_rate(replication, now)
        self.buckets.sync.set_rate(sync, now)
        if self.connection is not None:
            self.connection.wake()

    async def mark(self, body: dict[str, object]) -> tuple[bytes, int, int]:
        """Put a marker into the stream: (generation, sequence, time). The tap's errors."""
        ring = self.ring
        if ring is None:
            raise self._not_open()
        seq, time = await ring.tap.mark(body)
        failpoint("marker_after_placed_before_told")
        return ring.generation, seq, time

    def _not_open(self) -> NotAttached:
        return NotAttached(
            f"The ring of group {self.settings.identity.group} is not open.",
            hint="See `holdfast-agent status`: attach a disk, or wait for the tap.",
            retryable=True,
        )

    async def wait_stored(self, generation: bytes, seq: int) -> None:
        """Return when the position is in the store; never, if its generation ends before."""
        self._wanted = max(self._wanted, (generation, seq), key=lambda w: (w[0] == generation, w))
        if self.connection is not None:
            self.connection.commit_now(seq)
        while not self._has_stored(generation, seq):
            await self._stored_changed.wait()

    def _has_stored(self, generation: bytes, seq: int) -> bool:
        return self.figures.tally.generation == generation and self.stored >= seq

    async def end(self, seconds: float) -> None:
        """Say goodbye to ingest; afterwards the task of `run` may be cancelled."""
        self._is_ending = True
        self._end_connection("the agent stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connection is not None:
                    await self._stored_changed.wait(0.05)

    # --- its life

    async def run(self) -> None:
        """Never returns; cancel it. Raises nothing but what is a defect."""
        while True:
            if self.is_stopped:
                self.phase = "stopped"
                await self._nudge.wait()
                continue
            try:
                tap = await self._doors.connect_tap()
            except NotAttached as error:
                self.phase, self.failure = "not_attached", error
                await self._nudge.wait(_LOOK_SECONDS)
                continue
            except HoldfastError as error:
                self.phase, self.failure = "no_tap", error
                await self._follow(error)
                continue
            try:
                await self._with_tap(tap)
            except HoldfastError as error:
                self.phase, self.failure = "no_tap", error
                await self._follow(error)
            finally:
                await tap.close()

    async def _with_tap(self, tap: Tap) -> None:
        opened = await tap.open()
        if self._renew is not None:
            os.close(opened.descriptor)
            await tap.new_generation(self._renew)
            failpoint("generation_after_made_before_open")
            self._renew = None
            return
        ring = self._open_ring(tap, opened)
        self.decider.on_opened()
        try:
            await self._open_spool(ring)
            self.figures.tally.on_ring(ring.generation, ring.held, opened.head)
            self.ring = ring
            work = [self._watch(ring), self._connections(ring)]
            if self.spooler is not None:
                work.append(self.spooler.run())
            await run_together(*work)
        finally:
            self.ring = None
            self.figures.recovery.forget()
            ring.file.close()
            if ring.spool is not None:
                ring.spool.close()

    async def _open_spool(self, ring: OpenRing) -> None:
        """A spool that cannot be used is shown; the stream goes on without it."""
        self.spooler, wanted = None, self.settings.spool
        try:
            ring.spool = await self._means.offload(
                lambda: open_spool(self.settings, ring, self._means)
            )
            self.spool_failure = None
        except SpoolFailed as error:
            self.spool_failure = error
        if ring.spool is not None and wanted is not None:
            self.spooler = Spooler(
                ring, wanted, self._means, lambda: self.stored, lambda: self.connection is not None
            )

    def _open_ring(self, tap: Tap, opened: RingOpened) -> OpenRing:
        try:
            file = RingFile(opened.descriptor, opened.generation)
            key = self._doors.keys.find(opened.generation)
            if key is None and opened.head:
                raise DataKeyMissing(
                    "The key of what this ring recorded is not in the state directory.",
                    hint="A new generation begins by itself; everything is sent again.",
                )
            failpoint("ring_after_open_before_key")
            key = key or self._doors.keys.make(opened.generation)
            failpoint("key_after_kept_before_hello")
        except BaseException:
            os.close(opened.descriptor)
            raise
        state = TapState(opened.generation, opened.head, opened.state, opened.cause, 0)
        return OpenRing(
            tap, file, opened, key, state, opened.freed, opened.anchor, opened.anchor_hash
        )

    async def _watch(self, ring: OpenRing) -> None:
        """Follow the tap's head and state by long polls; idle, it costs one every ten seconds.

        While there is something new again and again, it is asked for some frames' worth, or for
        what came in the time that a frame's first records wait for company.
        """
        linger_ms = round(self.settings.linger_seconds * 1000)
        is_busy = False
        while True:
            before = ring.state.head
            ahead = _FRAMES_AT_ONCE * ring.frame_records - 1 if is_busy else 0
            wait_ms = linger_ms if is_busy else self.settings.idle_wait_ms
            state = await ring.tap.wait(before + ahead, wait_ms)
            ring.see(state)
            is_busy = ring.state.head > before
            self.figures.tally.on_head(ring.state.head)
            self.figures.recovery.observe(state, self._means.clock.monotonic(), self.stored)

    # --- connections

    async def _connections(self, ring: OpenRing) -> None:
        """Connect again and again; returns when the ring must be opened again."""
        while self._renew is None:
            if self.is_paused or self.is_stopped or self._is_ending:
                self.phase = "paused" if self.is_paused else "stopped"
                await self._nudge.wait()
                continue
            try:
                await self._connect(ring)
            except StreamPaused:
                continue
            except HoldfastError as error:
                self.failure = error
                self.figures.counters.connections_failed += 1
                if not await self._follow(error):
                    return

    async def _follow(self, error: HoldfastError) -> bool:
        """Do what the Decider says. True if the same ring may be used again."""
        action = self.decider.on_failure(error, self._means.clock.monotonic())
        match action:
            case Retry(seconds=seconds):
                await self._nudge.wait(seconds)
            case Renew(cause=cause):
                self._renew = cause
            case Reopen(seconds=seconds):
                await self._nudge.wait(seconds)
                return False
            case Stop():
                pass
        return True

    async def _connect(self, ring: OpenRing) -> None:
        self.phase, ends = "connecting", self._ends
        self.figures.counters.connections += 1
        link = await self._doors.dial(self.decider.address)
        failpoint("link_after_dial_before_hello")
        try:
            self.address = link.address
            connection = await self._begin(ring, link)
            self.connection, self.phase, self.failure = connection, "streaming", None
            self._repeat_wish(ring, connection)
            if self._ends != ends:
                connection.finish("it was to end before it began")
            await connection.run()
        finally:
            self.connection, self.epoch = None, None
            self._stored_changed.notify()
            await link.close()

    async def _begin(self, ring: OpenRing, link: Link) -> Connection:
        self.decider.on_hello()
        try:
            welcome = await greet(ring, link, self._shared)
            self.decider.on_welcome()
            failpoint("welcome_after_heard_before_check")
            await self._adopt(ring, welcome)
            preparer, stored = await begin(ring, welcome, self._shared)
        except HoldfastError as error:
            await say_goodbye(link, error)
            raise
        failpoint("welcome_after_check_before_free")
        await self._confirm(ring, stored)
        failpoint("welcome_after_free_before_frames")
        self.epoch = welcome.epoch
        terms = Terms(welcome.epoch, welcome.window_bytes, welcome.frame_bytes_max)
        ledger = Ledger(terms, ring.generation, stored.seq)
        connection = Connection(ring, link, ledger, preparer, self._shared)
        connection.begin_at(stored.seq, welcome.place)
        return connection

    async def _adopt(self, ring: OpenRing, welcome: Welcome) -> None:
        """A generation that continues nothing of this journal begins over what the journal has.

        So disks that it has by name can be compared with it, and where that is not possible they
        are sent whole all the same. RingChanged if the tap began such a generation.
        """
        is_new = welcome.begin == "new_generation" and ring.state.head == 0
        newest = bytes.fromhex(welcome.generation or "")
        if not is_new or not newest or newest == ring.opened.predecessor:
            return
        if isinstance(ring.tap, ComparingTap) and newest != ring.generation:
            await ring.tap.follow(ring.state.cause or Trigger.FIRST_START, newest)
            raise RingChanged("A generation begins that continues what the journal holds.")

    def _repeat_wish(self, ring: OpenRing, connection: Connection) -> None:
        generation, seq = self._wanted
        if generation == ring.generation and seq > self.stored:
            connection.commit_now(seq)

    async def _confirm(self, ring: OpenRing, freed: Freed) -> None:
        """The journal and the ring agree up to `freed.seq`: give that back.

        Also what an earlier connection gave back without hearing that the tap knows of it: the tap
        would keep it, and a full ring would never have room again.
        """
        self._set_stored(freed.seq)
        if freed.seq > min(ring.held, ring.confirmed):
            await give_back(ring, freed, self._means)

    def _on_stored(self, seq: int) -> None:
        self.decider.on_success()
        self._set_stored(seq)
        if self.ring is not None and self._tidied != self.ring.generation:
            self._tidied = self.ring.generation
            failpoint("keys_after_stored_before_tidied")
            self._doors.keys.keep_only(self._tidied)

    def _set_stored(self, seq: int) -> None:
        self.figures.tally.on_stored(seq)
        self.figures.recovery.on_stored(seq)
        self._stored_changed.notify()

    def _end_connection(self, why: str) -> None:
        """Also of one that is being made: what was asked for holds from now on."""
        self._ends += 1
        if self.connection is not None:
            self.connection.finish(why)
        self._nudge.notify()
