"""Groups as the API shows them: what is wanted beside what is known."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Row, Select, func, select, true

from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import not_found
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

#: A group, what is known of it, its machines, its disks and their bytes.
Known = Row[Vpg, VpgStatus, int, int, Decimal] | tuple[Vpg, VpgStatus, int, int, Decimal]

_SIZES = (
    select(
        func.count(VpgDisk.machine_id.distinct()).label("machines"),
        func.count().label("disks"),
        func.coalesce(func.sum(Disk.bytes), 0).label("bytes"),
    )
    .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
    .where(VpgDisk.tenant_id == Vpg.tenant_id, VpgDisk.vpg_id == Vpg.id)
    .correlate(Vpg)
    .lateral("sizes")
)
_SHOWN = (
    select(Vpg, VpgStatus, _SIZES.c.machines, _SIZES.c.disks, _SIZES.c.bytes)
    .join(VpgStatus, (VpgStatus.tenant_id == Vpg.tenant_id) & (VpgStatus.vpg_id == Vpg.id))
    .join(_SIZES, true())
    .execution_options(populate_existing=True)
)


def shown_vpgs(tenant_id: UUID) -> Select[Vpg, VpgStatus, int, int, Decimal]:
    """All that is shown of the tenant's groups, in one query."""
    return _SHOWN.where(Vpg.tenant_id == tenant_id)


async def find_shown(unit: TenantUnit, vpg_id: str) -> Known:
    """What is shown of one group; Problem `not_found` for every other id."""
    try:
        key = parse(Kind.VPG, vpg_id)
    except BadId:
        raise not_found() from None
    if unit.is_narrowed:
        await find(unit, Vpg, Kind.VPG, vpg_id)
    wanted = shown_vpgs(unit.session.tenant_id).where(Vpg.id == key)
    found = (await unit.session.orm.execute(wanted)).one_or_none()
    if found is None:
        raise not_found()
    return found


async def show_now(unit: TenantUnit, vpg: Vpg) -> VpgOutput:
    """A group that this request has changed, as the API shows it; one query."""
    await unit.session.orm.flush()
    wanted = shown_vpgs(unit.session.tenant_id).where(Vpg.id == vpg.id)
    return show_vpg((await unit.session.orm.execute(wanted)).one(), unit.now)


def show_new(vpg: Vpg, status: VpgStatus, now: datetime) -> VpgOutput:
    """A group that this request has made, with no machine in it, as the API shows it."""
    return show_vpg((vpg, status, 0, 0, Decimal(0)), now)


def facts_of(status: VpgStatus) -> Facts:
    """What the group's promises are measured by."""
    return Facts(status.recoverable_at, status.oldest_at, status.protected_since)


def _id(kind: Kind, key: UUID | None) -> str | None:
    return None if key is None else show(kind, key)


def show_vpg(known: Known, now: datetime) -> VpgOutput:
    """As the API shows it."""
    vpg, status, machines, disks, size = known
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
        machines=machines,
        disks=disks,
        protected_bytes=int(size),
        retained_bytes=status.retained_bytes,
        created_at=vpg.created_at,
    )
