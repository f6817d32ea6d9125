"""The agent's door to a simulated tap: the stream's port, each call with its delay."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from host_agent.stream.errors import TapGone
from host_agent.stream.ledger import Freed
from host_agent.stream.ports import Look, RingOpened, SyncStep, TapState, ToRead
from host_agent.wire.record import State
from host_agent.wire.tapctl import TapRefused
from tests.sim.loop import Process
from tests.sim.tap import Tap

if TYPE_CHECKING:
    from tests.sim.machine import Machine


class TapConnection:
    """The agent's connection to the tap: the stream's port `Tap`."""

    def __init__(self, machine: Machine, tap: Tap, agent: Process) -> None:
        self._machine, self._tap, self._agent = machine, tap, agent
        self._is_closed = False
        self._said: tuple[State, bytes] | None = None

    async def _call(self) -> Tap:
        await asyncio.sleep(self._machine.rng.uniform(0.00005, 0.001))
        return self._check()

    def _check(self) -> Tap:
        machine = self._machine
        is_ours = machine.opener in (self, None)
        if not self._tap.is_alive or self._is_closed or not self._agent.is_alive or not is_ours:
            raise TapGone("The tap is gone.", retryable=True)
        return self._tap

    async def open(self) -> RingOpened:
        await asyncio.sleep(0.0005)
        self._machine.opener = self
        tap = self._check()
        ring = tap.ring
        self._said = (tap.state, ring.generation)
        return RingOpened(
            descriptor=os.dup(ring.descriptor),
            generation=ring.generation,
            predecessor=ring.predecessor if any(ring.predecessor) else None,
            head=ring.head,
            freed=ring.freed,
            payload_head=ring.payload_head,
            payload_freed=ring.payload_freed,
            anchor=ring.anchor,
            anchor_hash=ring.anchor_hash,
            state=tap.state,
            cause=tap.cause,
        )

    async def wait(self, after: int, milliseconds: int) -> TapState:
        tap = await self._call()
        deadline = self._machine.around.loop.time() + milliseconds / 1000
        while tap.ring.head <= after and self._said == (tap.state, tap.ring.generation):
            changed = self._machine.changed
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
            except TimeoutError:
                break
            self._check()
        self._check()
        self._said = (tap.state, tap.ring.generation)
        return self._state(tap)

    @staticmethod
    def _state(tap: Tap) -> TapState:
        return TapState(tap.ring.generation, tap.ring.head, tap.state, tap.cause, tap.time())

    async def state(self) -> TapState:
        return self._state(await self._call())

    async def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None:
        tap = await self._call()
        self._machine.around.on_freed(self._machine, tap.ring.generation, seq)
        tap.ring.free(seq, anchor, anchor_hash)

    async def sync(self, limit: int) -> SyncStep:
        return await self._serve(limit, None)

    async def _serve(self, limit: int, before: tuple[int, int] | None) -> SyncStep:
        """The tap serves it to its end, whatever becomes of who asked."""
        tap, machine = await self._call(), self._machine
        if machine.serving is not None and not machine.serving.done():
            raise TapRefused({"error": "busy", "message": "Another is served.", "retry": True})
        serve = asyncio.get_running_loop().create_task
        served = machine.serving = machine.tap_context.run(serve, self._sync(tap, limit, before))
        served.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(served)

    async def _sync(self, tap: Tap, limit: int, before: tuple[int, int] | None = None) -> SyncStep:
        if tap.state == State.DIRTY and not tap.begin_sync():
            return self._step(tap, 0, busy=True)
        read = 0
        while tap.state == State.SYNCING:
            at = tap.next_to_read(before)
            if at is None and tap.remaining:
                break
            if at is None:
                if tap.try_end():
                    break
                await asyncio.sleep(0.01)
                if not tap.is_alive:
                    raise TapGone("The tap is gone.", retryable=True)
                continue
            if read >= limit or not tap.has_sync_room():
                return self._step(tap, read, busy=read < limit)
            read += await self._read(tap, at)
        return self._step(tap, read, busy=False)

    async def _read(self, tap: Tap, at: tuple[int, int, int]) -> int:
        """One piece: marked as read, then read, then recorded."""
        disk, offset, length = at
        tap.reading.append(at)
        tap.to_read[disk].difference_update(range(offset // 4096, (offset + length) // 4096))
        epoch, before = tap.epoch, tap.ring.head
        rng, pause = self._machine.rng, self._machine.plan.read_seconds
        if rng.random() < 0.4:
            await asyncio.sleep(rng.uniform(0.0, pause))
        data = bytes(tap.disks[disk][offset : offset + length])
        barrier = tap.serial
        if rng.random() < 0.4:
            await asyncio.sleep(rng.uniform(0.0, pause))
        if not tap.is_alive:
            raise TapGone("The tap is gone.", retryable=True)
        tap.reading.remove(at)
        if tap.epoch != epoch:
            tap.to_read[disk].update(range(offset // 4096, (offset + length) // 4096))
            self._machine.around.count("sync_read_in_vain")
            return 0
        tap.barrier = max(tap.barrier, barrier)
        tap.take_block(at, data, before)
        return length

    @staticmethod
    def _step(tap: Tap, read: int, *, busy: bool) -> SyncStep:
        begin = tap.begin_seq
        return SyncStep(tap.state, read, tap.remaining, tap.total, busy, begin)

    async def mark(self, body: dict[str, object]) -> tuple[int, int]:
        tap = await self._call()
        marked = tap.mark(body)
        if marked is None:
            raise TapRefused({"error": "not_recording", "message": "No.", "retry": True})
        return marked

    async def new_generation(self, cause: str) -> bytes:
        tap = await self._call()
        return tap.new_generation(cause)

    async def close(self) -> None:
        self._is_closed = True
        if self._machine.opener is self:
            self._machine.opener = None


class ComparingConnection(TapConnection):
    """The same with what a tap offers to who compares or spools: the port `ComparingTap`."""

    async def sync_before(self, limit: int, before: tuple[int, int]) -> SyncStep:
        return await self._serve(limit, before)

    async def to_read(self, disk: str, start: int) -> ToRead:
        tap = await self._call()
        blocks = sorted(b for b in tap.to_read[tap.names.index(disk)] if b * 4096 >= start)
        ranges = [(block * 4096, 4096) for block in blocks]
        return ToRead(tap.begin_seq, ranges[:8], ranges[8][0] if len(ranges) > 8 else None)

    async def look(self, disk: str) -> Look:
        """The disk as it is now: who compares later than this misses nothing, because what is
        written meanwhile is recorded or marked."""
        tap = await self._call()
        data = tap.disks[tap.names.index(disk)]
        descriptor = os.memfd_create("sim-disk")
        os.pwrite(descriptor, data, 0)
        return Look(descriptor, len(data))

    async def same(
        self, generation: bytes, begin: int, disk: str, ranges: list[tuple[int, int]]
    ) -> None:
        tap = await self._call()
        is_current = tap.state == State.SYNCING and tap.begin_seq == begin
        if not is_current or tap.ring.generation != generation:
            raise TapRefused({"error": "stale_interval", "message": "It is over.", "retry": True})
        tap.drop_to_read(tap.names.index(disk), ranges)

    async def free_spooled(self, freed: Freed, stored: int) -> None:
        tap, machine = await self._call(), self._machine
        machine.around.on_freed(machine, tap.ring.generation, stored)
        machine.around.count("spooled")
        tap.ring.free(freed.seq, freed.anchor, freed.anchor_hash)

    async def force(self, disk: str | None) -> SyncStep:
        del disk
        tap = await self._call()
        tap.force()
        return await self._serve(0, None)

    async def follow(self, cause: str, predecessor: bytes) -> bytes:
        tap = await self._call()
        self._machine.around.count("followed")
        return tap.new_generation(cause, predecessor)
