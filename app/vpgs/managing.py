"""What the manager of a site reads of its hosts' groups: many hosts at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.models import HostAssignment, Machine, Vpg, VpgDisk
from app.vpgs.state import LIVE, Lifecycle


async def checkpoint_intervals(
    session: TenantSession, host_ids: Collection[UUID]
) -> dict[UUID, dict[str, float | None]]:
    """By host: how often each group on it wants a checkpoint, seconds; None: not while it is
    paused. One query.
    """
    seconds = Vpg.settings["checkpoint_seconds"].as_float()
    found = await session.orm.execute(
        select(Machine.host_id, Vpg.id, Vpg.lifecycle, seconds)
        .join(VpgDisk, (VpgDisk.tenant_id == Vpg.tenant_id) & (VpgDisk.vpg_id == Vpg.id))
        .join(
            Machine,
            (Machine.tenant_id == VpgDisk.tenant_id) & (Machine.id == VpgDisk.machine_id),
        )
        .where(
            Vpg.tenant_id == session.tenant_id,
            Machine.host_id.in_(host_ids),
            Vpg.lifecycle.in_(sorted(LIVE)),
        )
        .distinct()
    )
    intervals: dict[UUID, dict[str, float | None]] = defaultdict(dict)
    for host_id, vpg_id, lifecycle, every in found:
        is_paused = lifecycle == Lifecycle.PAUSED
        intervals[host_id][show(Kind.VPG, vpg_id)] = None if is_paused else every
    return intervals


async def assignment_versions(
    session: TenantSession, host_ids: Collection[UUID]
) -> dict[UUID, int]:
    """By host: the version of what it is told; none for a host that was never told. One query."""
    found = await session.orm.execute(
        select(HostAssignment.host_id, HostAssignment.version).where(
            HostAssignment.tenant_id == session.tenant_id, HostAssignment.host_id.in_(host_ids)
        )
    )
    return {row.host_id: row.version for row in found}
