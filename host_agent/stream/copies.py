"""One ring for several durable copies: the remote journal, and a local one beside it.

Each copy is a stream of its own, with its own connection, position and confirmations. What they
share is the tap's connection. Ring space goes back when every copy has stored it, so that none is
ever missing what another has; one copy drives syncs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from host_agent.stream.errors import RingChanged, TapGone
from host_agent.stream.ledger import Freed
from host_agent.stream.ports import ConnectTap, RingOpened, SyncStep, Tap, TapState


@dataclass
class _Live:
    """The tap's one connection. `stored`: how far each copy has confirmed."""

    tap: Tap
    opened: RingOpened
    stored: dict[str, Freed]
    freed: Freed
    users: int = 0
    is_over: bool = False


class RingShare:
    """Hands the same ring to the streams named `copies`; the first of them drives syncs."""

    def __init__(self, connect: ConnectTap, copies: Sequence[str]) -> None:
        assert copies
        self._connect = connect
        self._copies = tuple(copies)
        self._live: _Live | None = None
        self._opening = asyncio.Lock()

    def door(self, copy: str) -> ConnectTap:
        """How the stream `copy` reaches the ring."""
        assert copy in self._copies

        async def connect() -> Tap:
            return _SharedTap(self, await self._join(), copy, copy == self._copies[0])

        return connect

    async def _join(self) -> _Live:
        async with self._opening:
            live = self._live
            if live is None or live.is_over:
                tap = await self._connect()
                try:
                    opened = await tap.open()
                except BaseException:
                    await tap.close()
                    raise
                freed = Freed(opened.freed, opened.anchor, opened.anchor_hash)
                live = _Live(tap, opened, dict.fromkeys(self._copies, freed), freed)
                self._live = live
            live.users += 1
            return live

    async def leave(self, live: _Live) -> None:
        """One stream is done with the connection; the last one closes it."""
        live.users -= 1
        live.is_over = True
        if live.users == 0:
            if self._live is live:
                self._live = None
            os.close(live.opened.descriptor)
            await live.tap.close()


class _SharedTap:
    """The tap as one of the copies sees it."""

    def __init__(self, share: RingShare, live: _Live, copy: str, is_driver: bool) -> None:
        self._share = share
        self._live = live
        self._copy = copy
        self._is_driver = is_driver
        self._is_closed = False

    def _check(self) -> Tap:
        if self._live.is_over:
            raise TapGone("The other copy of this group opened the ring again.", retryable=True)
        return self._live.tap

    async def open(self) -> RingOpened:
        live = self._live
        now = await self._check().state()
        if now.generation != live.opened.generation:
            live.is_over = True
            raise RingChanged("The tap began a new generation.")
        return replace(
            live.opened,
            descriptor=os.dup(live.opened.descriptor),
            head=now.head,
            freed=live.freed.seq,
            anchor=live.freed.anchor,
            anchor_hash=live.freed.anchor_hash,
            state=now.state,
            cause=now.cause,
        )

    async def wait(self, after: int, milliseconds: int) -> TapState:
        return await self._check().wait(after, milliseconds)

    async def state(self) -> TapState:
        return await self._check().state()

    async def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None:
        live, tap = self._live, self._check()
        live.stored[self._copy] = Freed(seq, anchor, anchor_hash)
        least = min(live.stored.values(), key=lambda freed: freed.seq)
        if least.seq > live.freed.seq:
            live.freed = least
            await tap.free(least.seq, least.anchor, least.anchor_hash)

    async def sync(self, limit: int) -> SyncStep:
        tap = self._check()
        if self._is_driver:
            return await tap.sync(limit)
        state = await tap.state()
        return SyncStep(state.state, read=0, remaining=0, total=0, busy=True)

    async def mark(self, body: dict[str, object]) -> tuple[int, int]:
        return await self._check().mark(body)

    async def new_generation(self, cause: str) -> bytes:
        return await self._check().new_generation(cause)

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._share.leave(self._live)
