"""Takes a ring's records without keeping them: for a group whose durable copies are all off."""

from __future__ import annotations

import asyncio
from functools import partial

from host_agent.stream.batch import FrameLimits, count_for_frame
from host_agent.stream.parts import Means, Watch
from host_agent.stream.ports import ConnectTap, RingOpened, Tap
from host_agent.stream.prepare import hash_at
from host_agent.stream.ring import RingFile, plain_records
from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.record import State

_AGAIN_SECONDS = 2.0
_WAIT_MS = 10_000
_SYNC_BYTES = 4 * limits.MIB


class Drain:
    """Run `run` as a task. What passes is shown to `watch`, if there is one, and given back."""

    def __init__(self, connect: ConnectTap, means: Means, watch: Watch | None) -> None:
        self._connect = connect
        self._means = means
        self._watch = watch
        self.failure: HoldfastError | None = None

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                tap = await self._connect()
                try:
                    await self._drain(tap, await tap.open())
                finally:
                    await tap.close()
            except HoldfastError as error:
                self.failure = error
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _drain(self, tap: Tap, opened: RingOpened) -> None:
        file = RingFile(opened.descriptor, opened.generation)
        try:
            start = partial(hash_at, file, opened.anchor, opened.anchor_hash, opened.freed)
            running = await self._means.offload(start)
            self.failure = None
            while True:
                state = await tap.wait(running.position, _WAIT_MS)
                if state.generation != opened.generation:
                    return
                if state.head > running.position:
                    await self._means.offload(partial(self._take, file, running, state.head))
                    await tap.free(running.position, running.anchor, running.anchor_hash)
                elif state.state in (State.DIRTY, State.SYNCING):
                    await tap.sync(_SYNC_BYTES)
        finally:
            file.close()

    def _take(self, file: RingFile, running: RecordHash, head: int) -> None:
        bounds = FrameLimits()
        first = running.position + 1
        entries = file.entries(first, min(head, first + bounds.records - 1))
        entries = entries[: count_for_frame(entries, bounds)]
        records = plain_records(entries)
        if self._watch is not None:
            self._watch(records, file.payload(entries))
        running.update(records)
