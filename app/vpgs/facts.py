"""Facts about groups flow up: what hosts report, entered by the data services manager.

Each function takes the transaction's session and gives back events for its ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update

from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.kit.ids import Kind, parse, show
from app.models import HostAssignment, Operation, Vpg, VpgStatus
from app.models.base import key_of
from app.operations.service import succeed
from app.operations.state import UNFINISHED
from app.vpgs.state import (
    LIFECYCLE,
    LINK,
    LINK_REPORTED,
    SYNC,
    SYNC_REPORTED,
    Lifecycle,
    LifecycleEvent,
    Link,
    Sync,
    SyncEvent,
)

DELETE = "vpg.delete"


@dataclass(frozen=True)
class Reported:
    """What is known of a group, of all its hosts together. A backlog in bytes."""

    sync: Sync
    link: Link
    backlog_bytes: int = 0
    gap_reason: str | None = None


async def record_statuses(
    session: TenantSession, reports: Mapping[UUID, Reported], now: datetime
) -> list[Happening]:
    """Enter what is known of groups; two queries and one write a group that changed. Groups that
    there are not are passed over: a host may be behind.
    """
    found = await session.orm.execute(
        select(VpgStatus, Vpg)
        .join(Vpg, (Vpg.tenant_id == VpgStatus.tenant_id) & (Vpg.id == VpgStatus.vpg_id))
        .where(VpgStatus.tenant_id == session.tenant_id, VpgStatus.vpg_id.in_(sorted(reports)))
        .order_by(VpgStatus.vpg_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    happenings: list[Happening] = []
    for status, vpg in found:
        happenings += _enter(status, vpg, reports[vpg.id], now)
    await session.orm.flush()
    return happenings


def _enter(status: VpgStatus, vpg: Vpg, report: Reported, now: datetime) -> list[Happening]:
    shown, happenings = show(Kind.VPG, vpg.id), []
    sync = _sync_after(Sync(status.sync), report.sync)
    if sync != status.sync:
        data = {"before": status.sync, "after": sync.value, "reason": report.gap_reason}
        happenings.append(Happening("vpgs.sync_changed", shown, data))
    link = LINK.after(Link(status.link), LINK_REPORTED[report.link])
    if link != status.link:
        data = {"before": status.link, "after": link.value}
        happenings.append(Happening("vpgs.link_changed", shown, data))
    status.sync, status.link = sync, link
    status.backlog_bytes, status.gap_reason = report.backlog_bytes, report.gap_reason
    status.reported_at = now
    if sync == Sync.IN_SYNC and vpg.lifecycle == Lifecycle.INITIALISING:
        vpg.lifecycle = LIFECYCLE.after(Lifecycle(vpg.lifecycle), LifecycleEvent.SYNCED)
        vpg.version += 1
        happenings.append(Happening("vpgs.protected", shown, {"name": vpg.name}))
    return happenings


def _sync_after(before: Sync, reported: Sync) -> Sync:
    if before == reported:
        return before
    if reported == Sync.NONE:
        return SYNC.after(before, SyncEvent.RESET)
    return SYNC.after(before, SYNC_REPORTED[reported])


async def record_held(
    session: TenantSession, host_id: UUID, version: int, now: datetime
) -> list[Happening]:
    """A host says which assignment it has. Groups that were only waiting for it are removed."""
    table = HostAssignment
    changed = await session.orm.execute(
        update(table)
        .where(
            table.tenant_id == session.tenant_id,
            table.host_id == host_id,
            table.held_version < version,
            table.version >= version,
        )
        .values(held_version=version)
        .returning(table.host_id)
    )
    if changed.first() is None:
        return []
    found = await session.orm.scalars(
        select(Operation).where(
            Operation.tenant_id == session.tenant_id,
            Operation.kind == DELETE,
            Operation.state.in_(sorted(UNFINISHED)),
            Operation.input["hosts"].has_key(show(Kind.HOST, host_id)),
        )
    )
    happenings: list[Happening] = []
    for operation in found:
        happenings += await finish_removal(session, operation, now)
    return happenings


async def finish_removal(
    session: TenantSession, operation: Operation, now: datetime
) -> list[Happening]:
    """End a group's removal if each of its hosts has heard of it."""
    told = {parse(Kind.HOST, host): version for host, version in operation.input["hosts"].items()}
    table = HostAssignment
    found = await session.orm.execute(
        select(table.host_id, table.held_version).where(
            table.tenant_id == session.tenant_id, table.host_id.in_(sorted(told))
        )
    )
    if any(row.held_version < told[row.host_id] for row in found):
        return []
    key = key_of(session.tenant_id, parse(Kind.VPG, operation.subject))
    vpg = await session.orm.get_one(Vpg, key, with_for_update=True)
    vpg.lifecycle = LIFECYCLE.after(Lifecycle(vpg.lifecycle), LifecycleEvent.REMOVED)
    vpg.version += 1
    ended = await succeed(session, operation.id, now, {"journal": "kept"})
    return [ended, Happening("vpgs.removed", operation.subject, {"name": vpg.name})]
