"""Groups as the API shows them: what is wanted beside what is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select

from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.models import Disk, Vpg, VpgDisk, VpgStatus
from app.vpgs.schemas import VpgOutput
from app.vpgs.settings import Settings
from app.vpgs.state import (
    LIFECYCLE,
    Facts,
    Lifecycle,
    Link,
    Promise,
    Recovery,
    Sync,
    history_actual_seconds,
    rpo_actual_seconds,
    sla_of,
)


class _Size(NamedTuple):
    machines: int
    disks: int
    bytes: int


async def show_vpgs(session: TenantSession, vpgs: Sequence[Vpg], now: datetime) -> list[VpgOutput]:
    """As the API shows them; two queries, however many."""
    ids = [vpg.id for vpg in vpgs]
    found = await session.orm.scalars(
        select(VpgStatus)
        .where(VpgStatus.tenant_id == session.tenant_id, VpgStatus.vpg_id.in_(ids))
        .execution_options(populate_existing=True)
    )
    statuses = {status.vpg_id: status for status in found}
    sizes = await _sizes(session, ids)
    empty = _Size(0, 0, 0)
    return [_show(vpg, statuses[vpg.id], sizes.get(vpg.id, empty), now) for vpg in vpgs]


async def _sizes(session: TenantSession, ids: Sequence[UUID]) -> dict[UUID, _Size]:
    found = await session.orm.execute(
        select(
            VpgDisk.vpg_id,
            func.count(VpgDisk.machine_id.distinct()),
            func.count(),
            func.sum(Disk.bytes),
        )
        .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
        .where(VpgDisk.tenant_id == session.tenant_id, VpgDisk.vpg_id.in_(ids))
        .group_by(VpgDisk.vpg_id)
    )
    return {row[0]: _Size(row[1], row[2], int(row[3])) for row in found}


def facts_of(status: VpgStatus) -> Facts:
    """What the group's promises are measured by."""
    return Facts(status.recoverable_at, status.oldest_at, status.protected_since)


def _id(kind: Kind, key: UUID | None) -> str | None:
    return None if key is None else show(kind, key)


def _show(vpg: Vpg, status: VpgStatus, size: _Size, now: datetime) -> VpgOutput:
    settings, facts = Settings(**vpg.settings), facts_of(status)
    promise = Promise(settings.rpo_seconds, settings.history_hours * 3600)
    lifecycle = Lifecycle(vpg.lifecycle)
    return VpgOutput(
        id=show(Kind.VPG, vpg.id),
        name=vpg.name,
        description=vpg.description,
        labels=vpg.labels,
        settings=settings,
        profile_id=_id(Kind.SERVICE_PROFILE, vpg.profile_id),
        protected_site_id=_id(Kind.SITE, vpg.protected_site_id),
        recovery_site_id=_id(Kind.SITE, vpg.recovery_site_id),
        store=vpg.store,
        lifecycle=lifecycle,
        sync=Sync(status.sync),
        sla=sla_of(promise, facts, now),
        recovery=Recovery(vpg.recovery),
        link=Link(status.link),
        moved_by=LIFECYCLE.events_of(lifecycle),
        rpo_actual_seconds=rpo_actual_seconds(facts, now),
        recoverable_at=facts.recoverable_at,
        history_actual_seconds=history_actual_seconds(facts),
        oldest_at=facts.oldest_at,
        backlog_bytes=status.backlog_bytes,
        gap_reason=status.gap_reason,
        reported_at=status.reported_at,
        machines=size.machines,
        disks=size.disks,
        protected_bytes=size.bytes,
        created_at=vpg.created_at,
    )
