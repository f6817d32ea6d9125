"""A process's lease: one row, renewed by the database's clock; permission to act by one's own.

The permission ends earlier than the row (`act` < `gone`), and it is counted from before the renewal
was sent: whatever the network does, a process has stopped acting before another can take over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete, func, insert, update

from app.database.sessions import Database
from app.kit.problems import Problem
from app.models import Lease

_KEPT = timedelta(hours=1)


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds: how often it is renewed, how long one may act after it, when the row is gone."""

    renew: float = 2.0
    act: float = 6.0
    gone: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.renew < self.act < self.gone:
            raise ValueError("A lease is renewed before acting ends, which ends before it is gone.")


class Permission:
    """Whether this process may act. Times are of a monotonic clock."""

    def __init__(self, act_seconds: float) -> None:
        self._act_seconds = act_seconds
        self._sent_at: float | None = None

    def renewed(self, sent_at: float) -> None:
        """A renewal that was sent then succeeded."""
        self._sent_at = sent_at

    def end(self) -> None:
        """Not until the next renewal."""
        self._sent_at = None

    def holds(self, now: float) -> bool:
        """Whether the last good renewal was sent recently enough."""
        return self._sent_at is not None and now - self._sent_at < self._act_seconds


class LeaseKeeper:
    """Holds a lease as long as it runs. A lost one is replaced by another, with another id."""

    def __init__(self, database: Database, address: str, times: LeaseTimes) -> None:
        self.id: UUID = uuid4()
        self.permission = Permission(times.act)
        self.on_lost: Callable[[], None] = lambda: None
        self._database, self._address, self._times = database, address, times
        self._monotonic = asyncio.get_running_loop().time

    def may_act(self) -> bool:
        """Whether commands may be sent now."""
        return self.permission.holds(self._monotonic())

    async def begin(self) -> None:
        """Enter a new lease; Problem `database_unavailable`."""
        self.id = uuid4()
        sent_at = self._monotonic()
        now = func.clock_timestamp()
        async with self._database.system() as session:
            await session.orm.execute(delete(Lease).where(Lease.expires_at < now - _KEPT))
            await session.orm.execute(
                insert(Lease).values(
                    id=self.id,
                    address=self._address,
                    started_at=now,
                    expires_at=now + timedelta(seconds=self._times.gone),
                )
            )
            await session.commit()
        self.permission.renewed(sent_at)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(self._times.renew)
            await self.renew()

    async def renew(self) -> None:
        """Once. Where the database does not answer, the permission runs out by itself."""
        sent_at = self._monotonic()
        try:
            async with asyncio.timeout(self._times.renew):
                is_held = await self._extend()
        except (TimeoutError, Problem):
            return
        if is_held:
            self.permission.renewed(sent_at)
            return
        self.permission.end()
        self.on_lost()
        await self._begin_again()

    async def _begin_again(self) -> None:
        try:
            await self.begin()
        except Problem:
            return  # the next renewal finds no row and comes here again

    async def _extend(self) -> bool:
        now = func.clock_timestamp()
        async with self._database.system() as session:
            done = await session.orm.execute(
                update(Lease)
                .where(Lease.id == self.id, Lease.expires_at > now)
                .values(expires_at=now + timedelta(seconds=self._times.gone))
                .returning(Lease.id)
            )
            is_held = done.first() is not None
            await session.commit()
        return is_held

    async def release(self) -> None:
        """Give it up at once: others need not wait for its end."""
        self.permission.end()
        async with self._database.system() as session:
            await session.orm.execute(delete(Lease).where(Lease.id == self.id))
            await session.commit()
