"""Hosts that were shut out, found for all tenants at once from ids, states and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import Database
from app.kit.problems import Problem
from app.models import Host, Tenant
from app.models.tenants import TenantState

#: Who was shut out longer ago than this has no connection left here.
_LOOKED_BACK = timedelta(minutes=30)


@dataclass(frozen=True)
class Out:
    """(tenant, host) of hosts, and tenants, that are shut out."""

    hosts: set[tuple[UUID, UUID]]
    tenants: set[UUID]


class Revocations:
    """Tells every few seconds who is out."""

    def __init__(self, database: Database, seconds: float, wall: Callable[[], datetime]) -> None:
        self._database, self._seconds, self._wall = database, seconds, wall

    async def run(self, on_out: Callable[[Out], None]) -> None:
        """Until cancelled."""
        while True:
            try:
                on_out(await self.find())
            except Problem as problem:
                if not problem.retryable:
                    raise
            await asyncio.sleep(self._seconds)

    async def find(self) -> Out:
        """Who was shut out lately; Problem."""
        since = self._wall() - _LOOKED_BACK
        async with self._database.system() as session:
            hosts = await session.orm.execute(
                select(Host.tenant_id, Host.id).where(Host.revoked_at > since)
            )
            found = {(row[0], row[1]) for row in hosts}
            tenants = await session.orm.scalars(
                select(Tenant.id).where(Tenant.state == TenantState.SUSPENDED)
            )
            return Out(found, set(tenants))
