"""What hosts and the data services manager enter, in a test, as they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.database.sessions import TenantSession
from app.events.ledger import Circumstances
from app.kit.ids import Kind, parse, show
from app.operations.service import Wanted, open_operation
from tests.app.service import Caller, Service


@asynccontextmanager
async def acting(
    service: Service, tenant: Caller
) -> AsyncIterator[tuple[TenantSession, Circumstances]]:
    """A transaction in the tenant's scope, as a process of the control plane opens it."""
    tenant_id = parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"])
    async with service.tools.database.tenant(tenant_id) as session:
        yield session, Circumstances("dsm", "", "", service.tools.clock.now())
        await session.commit()


async def make_operation(service: Service, tenant: Caller, name: str) -> str:
    """The id of an operation that waits."""
    async with acting(service, tenant) as (session, by):
        wanted = Wanted("vpg.force_sync", "vpg_x", {"note": name}, steps=("compare", "send"))
        return show(Kind.OPERATION, open_operation(session, wanted, by).id)
