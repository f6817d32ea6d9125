"""Hosts that were shut out, found for all tenants in one query of ids, states and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import Database
from app.kit.problems import Problem
from app.models import Host

#: Who was shut out longer ago than this has no connection left here.
_LOOKED_BACK = timedelta(minutes=30)


class Revocations:
    """Tells every few seconds who is out."""

    def __init__(self, database: Database, seconds: float, wall: Callable[[], datetime]) -> None:
        self._database, self._seconds, self._wall = database, seconds, wall

    async def run(self, on_out: Callable[[set[tuple[UUID, UUID]]], None]) -> None:
        """Until cancelled."""
        while True:
            try:
                on_out(await self.find())
            except Problem as problem:
                if not problem.retryable:
                    raise
            await asyncio.sleep(self._seconds)

    async def find(self) -> set[tuple[UUID, UUID]]:
        """(tenant, host) of those that were shut out lately; Problem."""
        since = self._wall() - _LOOKED_BACK
        async with self._database.system() as session:
            found = await session.orm.execute(
                select(Host.tenant_id, Host.id).where(Host.revoked_at > since)
            )
            return {(row[0], row[1]) for row in found}
