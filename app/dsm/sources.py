"""What a manager reads and enters in a tenant's scope, a few rows at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, case, select
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import SystemSession, TenantSession
from app.dsm.assignments import NO_SITE
from app.dsm.health import HealthRecord
from app.dsm.known import KnownHost
from app.kit.ids import Kind, parse
from app.models import ApplianceHealth, Host, HostInventory, HostStatus
from app.models.hosts import HostState
from app.vpgs.managing import assignment_versions, checkpoint_intervals

#: So many rows are read or written in one go: more would hold up everybody on the loop.
ROWS_AT_ONCE = 25


async def known_hosts(
    session: TenantSession, site_id: UUID, only: set[UUID] | None
) -> AsyncIterator[list[KnownHost]]:
    """The active hosts of a site, or these of them, some at a time."""
    after: UUID | None = None
    while True:
        rows = await _rows(session, site_id, only, after)
        if not rows:
            return
        host_ids = [row[0] for row in rows]
        intervals = await checkpoint_intervals(session, host_ids)
        versions = await assignment_versions(session, host_ids)
        yield [
            KnownHost(
                host_id=row[0],
                health=row[1] or "",
                reason=row[2],
                tap=row[3] or "up",
                held_version=row[4] or 0,
                facts=row[5] or {},
                digest=row[6],
                version=versions.get(row[0], 0),
                groups=intervals.get(row[0], {}),
            )
            for row in rows
        ]
        after = host_ids[-1]


async def _rows(
    session: TenantSession, site_id: UUID, only: set[UUID] | None, after: UUID | None
) -> Sequence[Any]:
    site = Host.site_id.is_(None) if site_id == NO_SITE else Host.site_id == site_id
    conditions = [Host.tenant_id == session.tenant_id, Host.state == HostState.ACTIVE, site]
    if only is not None:
        conditions.append(Host.id.in_(only))
    if after is not None:
        conditions.append(Host.id > after)
    status = and_(HostStatus.tenant_id == Host.tenant_id, HostStatus.host_id == Host.id)
    inventory = and_(HostInventory.tenant_id == Host.tenant_id, HostInventory.host_id == Host.id)
    found = await session.orm.execute(
        select(
            Host.id,
            HostStatus.health,
            HostStatus.reason,
            HostStatus.tap,
            HostStatus.assignment_version,
            HostStatus.facts,
            HostInventory.digest,
        )
        .outerjoin(HostStatus, status)
        .outerjoin(HostInventory, inventory)
        .where(*conditions)
        .order_by(Host.id)
        .limit(ROWS_AT_ONCE)
    )
    return found.all()


async def write_statuses(
    session: TenantSession, rows: Sequence[dict[str, Any]], now: datetime
) -> None:
    """Enter what is known of hosts: one row each."""
    entered = insert(HostStatus)
    taken = {name: entered.excluded[name] for name in _STATUS_COLUMNS}
    is_new = HostStatus.health != entered.excluded.health
    await session.orm.execute(
        entered.on_conflict_do_update(
            index_elements=["tenant_id", "host_id"],
            set_={**taken, "changed_at": _since(is_new, now)},
        ),
        [{"tenant_id": session.tenant_id, "changed_at": now, **row} for row in rows],
    )


_STATUS_COLUMNS = ("health", "reason", "tap", "assignment_version", "seen_at", "facts")


def _since(is_new: Any, now: datetime) -> Any:

    return case((is_new, now), else_=HostStatus.changed_at)


async def write_health(session: SystemSession, records: Sequence[HealthRecord]) -> None:
    """Enter the newest health record of each agent, unless a manager of a later epoch did."""
    entered = insert(ApplianceHealth)
    columns = ("health", "capacity_class", "epoch", "at")
    await session.orm.execute(
        entered.on_conflict_do_update(
            index_elements=["appliance"],
            set_={name: entered.excluded[name] for name in columns},
            where=ApplianceHealth.epoch <= entered.excluded.epoch,
        ),
        [
            {
                "appliance": parse(Kind.HOST, record.appliance),
                "health": record.health,
                "capacity_class": record.capacity_class,
                "epoch": record.epoch,
                "at": record.time,
            }
            for record in records
        ],
    )
