"""The agent's door to a simulated tap: the stream's port, each call with its delay."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from host_agent.stream.errors import TapGone
from host_agent.stream.ports import RingOpened, SyncStep, TapState
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
        """The tap serves it to its end, whatever becomes of who asked."""
        tap, machine = await self._call(), self._machine
        if machine.serving is not None and not machine.serving.done():
            raise TapRefused({"error": "busy", "message": "Another is served.", "retry": True})
        serve = asyncio.get_running_loop().create_task
        served = machine.serving = machine.tap_context.run(serve, self._sync(tap, limit))
        served.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(served)

    async def _sync(self, tap: Tap, limit: int) -> SyncStep:
        if tap.state == State.DIRTY and not tap.begin_sync():
            return self._step(tap, 0, busy=True)
        read = 0
        while tap.state == State.SYNCING:
            at = tap.next_to_read()
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
        return SyncStep(tap.state, read, tap.remaining, tap.total, busy)

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
