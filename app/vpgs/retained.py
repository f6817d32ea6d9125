"""What the journals of a tenant's groups take in the store, and what its plan says of that.

A plan's limit is met by people: protection goes on beyond it and no history goes away by it. New
groups and machines are refused, and the tenant and its provider are told in time.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, func, select, update

from app.alerts.service import Raised, clear_alerts, raise_alerts
from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.kit.ids import Kind, show
from app.models import Tenant, Vpg, VpgStatus
from app.tenants.schemas import Plan
from app.vpgs.state import Lifecycle

NEAR, EXCEEDED = "quota.near", "quota.exceeded"
NEAR_PERCENT = 80

#: The bytes of a tenant's groups together, parameter `tenant_id`; of a group that was never
#: measured nothing.
RETAINED = (
    select(func.coalesce(func.sum(VpgStatus.retained_bytes), 0))
    .join(Vpg, (Vpg.tenant_id == VpgStatus.tenant_id) & (Vpg.id == VpgStatus.vpg_id))
    .where(Vpg.tenant_id == bindparam("tenant_id"), Vpg.lifecycle != Lifecycle.REMOVED)
)


async def enter_retained(session: TenantSession, vpg_id: UUID, size: int) -> None:
    """Write down what a group's journal takes, bytes."""
    await session.orm.execute(
        update(VpgStatus)
        .where(VpgStatus.tenant_id == session.tenant_id, VpgStatus.vpg_id == vpg_id)
        .values(retained_bytes=size)
    )


def alert_of(size: int, most: int | None) -> str | None:
    """The alert that this many bytes of so many (None: any) deserve."""
    if most is None:
        return None
    if size > most:
        return EXCEEDED
    return NEAR if size * 100 >= most * NEAR_PERCENT else None


async def watch_retained(session: TenantSession, now: datetime) -> tuple[int, list[Happening]]:
    """What the tenant's journals take now, bytes, and what was told because of it."""
    given = {"tenant_id": session.tenant_id}
    size = int((await session.orm.execute(RETAINED, given)).scalar_one() or 0)
    found = await session.orm.execute(select(Tenant.plan).where(Tenant.id == session.tenant_id))
    most = Plan(**found.scalar_one()).retained_bytes_max
    code, subject = alert_of(size, most), show(Kind.TENANT, session.tenant_id)
    over = [(one, subject) for one in (NEAR, EXCEEDED) if one != code]
    told = await clear_alerts(session, over, now)
    if code is not None:
        level = "error" if code == EXCEEDED else "warning"
        message = f"The journals take {size} bytes in the store; the plan allows {most}."
        told += await raise_alerts(session, [Raised(code, level, subject, message)], now)
    return size, told
