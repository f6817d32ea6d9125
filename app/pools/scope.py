"""The provider's staff at work in a scope: a tenant's, or the one that holds what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert

from app.certificates.service import make_authority
from app.http.unit import ProviderUnit, TenantUnit
from app.models import Tenant, TenantLedger
from app.models.tenants import PROVIDER_ID, TenantState
from app.tenants.schemas import Plan

#: No tenant's name begins with a space.
_NAME = " provider"


@asynccontextmanager
async def scope_of(unit: ProviderUnit, tenant_id: UUID) -> AsyncIterator[TenantUnit]:
    """A transaction in this scope. With the block's end its ledger is written and it is committed;
    an error undoes all of it.
    """
    async with unit.tools.database.tenant(tenant_id) as session:
        inside = TenantUnit(session, unit.principal, unit.tools, unit.circumstances)
        yield inside
        await inside.finish()


async def ensure_own_scope(unit: ProviderUnit) -> None:
    """Make the provider's own scope, with its ledger and its authority. May be repeated."""
    async with unit.tools.database.provider() as session:
        await session.orm.execute(
            insert(Tenant)
            .values(
                id=PROVIDER_ID,
                name=_NAME,
                state=TenantState.ACTIVE,
                plan=Plan().model_dump(),
                created_at=unit.now,
                version=1,
            )
            .on_conflict_do_nothing()
        )
        await session.commit()
    async with unit.tools.database.tenant(PROVIDER_ID) as scope:
        await scope.orm.get_one(Tenant, PROVIDER_ID, with_for_update=True)
        if await scope.orm.get(TenantLedger, PROVIDER_ID) is None:
            tools = unit.tools
            scope.orm.add(TenantLedger(tenant_id=PROVIDER_ID))
            scope.orm.add(make_authority(tools.root, tools.sealer, PROVIDER_ID, unit.now))
        await scope.commit()
