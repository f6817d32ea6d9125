"""How much of each pool a tenant uses, and whether it may."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Select, func, select

from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models import Host, Machine, PoolGrant, VpgDisk


async def machines_used(session: TenantSession) -> dict[UUID, int]:
    """By pool: how many of the tenant's machines are protected there. One query."""
    found = await session.orm.execute(_used(session))
    return {pool_id: machines for pool_id, machines in found if pool_id is not None}


def _used(session: TenantSession) -> Select[UUID | None, int]:
    return (
        select(Host.pool_id, func.count(VpgDisk.machine_id.distinct()).label("machines"))
        .join(Machine, (Machine.tenant_id == Host.tenant_id) & (Machine.host_id == Host.id))
        .join(
            VpgDisk,
            (VpgDisk.tenant_id == Machine.tenant_id) & (VpgDisk.machine_id == Machine.id),
        )
        .where(Host.tenant_id == session.tenant_id, Host.placement_id.is_not(None))
        .group_by(Host.pool_id)
    )


async def check_pools(session: TenantSession) -> None:
    """Problem `quota_exceeded` if more machines are protected in a pool than the policy allows.
    One query.
    """
    used = _used(session).subquery()
    found = await session.orm.execute(
        select(used.c.pool_id, used.c.machines, PoolGrant.machines_max)
        .join(PoolGrant, PoolGrant.pool_id == used.c.pool_id)
        .where(PoolGrant.tenant_id == session.tenant_id, used.c.machines > PoolGrant.machines_max)
    )
    over = found.first()
    if over is not None:
        raise Problem(
            "quota_exceeded",
            f"This would make {over.machines} machines in {show(Kind.POOL, over.pool_id)}; "
            f"the tenant's policy allows {over.machines_max}.",
            hint="Remove what is not needed, or ask the provider for more of the pool.",
        )
