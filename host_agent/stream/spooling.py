"""Moves what the ring holds into the spool while the line is down or nothing is stored.

The guest never waits for it: where the spool is full, slow or broken the ring fills, and the stream
becomes dirty as without one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from host_agent.stream.errors import SpoolFailed, SpoolFull
from host_agent.stream.ledger import Freed
from host_agent.stream.parts import Means, OpenRing, SpoolSettings, StreamSettings
from host_agent.stream.ports import ComparingTap
from host_agent.stream.prepare import hash_at
from host_agent.stream.ring import RingFile
from host_agent.stream.spool import Spool
from host_agent.stream.spoolfile import SpoolFile
from host_agent.wire.errors import HoldfastError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.limits import MIB

_LOOK_SECONDS = 0.25
#: Nothing was stored for so long although something waits: the line counts as down.
_STALLED_SECONDS = 5.0
#: Payload bytes of one write to the spool.
_MOVE_BYTES = 8 * MIB


def open_spool(settings: StreamSettings, ring: OpenRing, means: Means) -> Spool | None:
    """The stream's spool with what it still holds of this generation; None where there is none.

    SpoolFailed if its disk does not allow it.
    """
    wanted = settings.spool
    if wanted is None or not isinstance(ring.tap, ComparingTap):
        return None
    path = wanted.path / f"{settings.identity.group}.spool"
    file = SpoolFile(path, wanted.bytes, ring.generation, means.random.bytes)
    spool = Spool(file, settings.identity, ring.key, means.random)
    if spool.last < ring.opened.freed:
        # The ring gave back what came after it: all of that is stored.
        spool.clear()
    return spool


async def give_back(ring: OpenRing, freed: Freed, means: Means) -> None:
    """The journal has everything up to `freed.seq`: tap and spool need it no longer. TapGone."""
    ring.note_freed(freed)
    await ring.tap.free(freed.seq, freed.anchor, freed.anchor_hash)
    ring.confirmed = max(ring.confirmed, freed.seq)
    spool = ring.spool
    if spool is not None and spool.last:
        async with ring.reading:
            # A spool that refuses is not used again, and says so itself.
            with contextlib.suppress(SpoolFailed):
                await means.offload(lambda: spool.drop_stored(freed.seq))


class Spooler:
    """One open ring's. `stored`: the newest stored position; `is_connected`: whether a line is."""

    def __init__(
        self,
        ring: OpenRing,
        settings: SpoolSettings,
        means: Means,
        stored: Callable[[], int],
        is_connected: Callable[[], bool],
    ) -> None:
        self._ring = ring
        self._settings = settings
        self._means = means
        self._stored = stored
        self._is_connected = is_connected
        self._running: RecordHash | None = None
        self._progress = (0, means.clock.monotonic())
        self.failure: HoldfastError | None = None

    async def run(self) -> None:
        """Never returns; raises TapGone, RingChanged or RingDamaged."""
        while True:
            await self._ring.changed.wait(_LOOK_SECONDS)
            if self._is_due():
                await self._spool()

    def _fill(self) -> float:
        usage = self._ring.file.usage()
        return max(usage.bytes / usage.bytes_capacity, usage.records / usage.records_capacity)

    def _is_due(self) -> bool:
        spool, now = self._ring.spool, self._means.clock.monotonic()
        if self._progress[0] != self._stored():
            self._progress = self._stored(), now
        if spool is None or not spool.is_usable:
            return False
        is_stalled = now - self._progress[1] > _STALLED_SECONDS
        is_away = not self._is_connected() or is_stalled or spool.last > 0
        return is_away and self._fill() >= self._settings.begin_at

    async def _spool(self) -> None:
        while self._fill() > self._settings.end_at:
            async with self._ring.reading:
                try:
                    freed = await self._means.offload(self._move)
                except (SpoolFull, SpoolFailed) as error:
                    self.failure = error
                    return
                if freed is None:
                    return
                self.failure = None
                assert isinstance(self._ring.tap, ComparingTap)
                # Only now: what is given back is durable in the spool.
                self._ring.note_freed(freed)
                await self._ring.tap.free_spooled(freed, self._stored())
                self._ring.confirmed = max(self._ring.confirmed, freed.seq)

    def _move(self) -> Freed | None:
        """One batch; None if nothing is left to move. Beside the loop."""
        spool, ring = self._ring.spool, self._ring
        assert spool is not None
        last = spool.last or ring.freed
        if last >= ring.state.head:
            return None
        if self._running is None or self._running.position != last:
            self._running = self._hash_at(spool, ring.file, last)
        self._running = spool.move(ring.file, ring.state.head, self._running, _MOVE_BYTES)
        return Freed(self._running.position, self._running.anchor, self._running.anchor_hash)

    def _hash_at(self, spool: Spool, file: RingFile, position: int) -> RecordHash:
        if spool.last:
            return spool.hash_at(position)
        return hash_at(file, self._ring.anchor, self._ring.anchor_hash, position)
