"""Pools as a tenant sees them: its own rights and its own use, and nothing of who else is there."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.models import Host, PoolGrant, Site, Tenant
from app.models.hosts import HostState
from app.pools.quotas import machines_used
from app.pools.schemas import PoolOutput
from app.rights.territory import may_hold
from app.tenants.schemas import Plan


async def show_pools(session: TenantSession, grants: Sequence[PoolGrant]) -> list[PoolOutput]:
    """As the API shows them; four queries, however many."""
    tenant = await session.orm.get_one(Tenant, session.tenant_id)
    permitted = Plan(**tenant.plan).territories
    found = await session.orm.scalars(
        select(Site).where(
            Site.tenant_id == session.tenant_id, Site.id.in_([one.site_id for one in grants])
        )
    )
    sites = {site.id: site for site in found}
    used, serving = await machines_used(session), await _serving(session)
    return [
        PoolOutput(
            id=show(Kind.POOL, grant.pool_id),
            name=sites[grant.site_id].name,
            territory=sites[grant.site_id].territory,
            site_id=show(Kind.SITE, grant.site_id),
            machines_max=grant.machines_max,
            machines_used=used.get(grant.pool_id, 0),
            machines_free=max(0, grant.machines_max - used.get(grant.pool_id, 0)),
            is_permitted=may_hold(permitted, sites[grant.site_id].territory),
            is_serving=grant.pool_id in serving,
            created_at=grant.created_at,
        )
        for grant in grants
    ]


async def _serving(session: TenantSession) -> set[UUID | None]:
    found = await session.orm.scalars(
        select(Host.pool_id)
        .where(
            Host.tenant_id == session.tenant_id,
            Host.placement_id.is_not(None),
            Host.state == HostState.ACTIVE,
        )
        .distinct()
    )
    return set(found)
