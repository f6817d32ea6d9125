"""Hosts' assignments: read from rows, and raised when what a host is told changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.models import Disk, HostAssignment, Machine, Vpg, VpgDisk
from app.vpgs.assignment import DiskRow, GroupRow, HostRow, make_assignment
from app.vpgs.state import LIVE, Lifecycle


async def load_assignment(
    session: TenantSession, host_id: UUID, doors: Sequence[str]
) -> dict[str, Any]:
    """What this host is told to do now, as JSON; two queries."""
    table = HostAssignment
    version = await session.orm.scalar(
        select(table.version).where(table.tenant_id == session.tenant_id, table.host_id == host_id)
    )
    found = await session.orm.execute(
        select(Vpg, VpgDisk.name, Disk, Machine.name)
        .join(VpgDisk, (VpgDisk.tenant_id == Vpg.tenant_id) & (VpgDisk.vpg_id == Vpg.id))
        .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
        .join(Machine, (Machine.tenant_id == Disk.tenant_id) & (Machine.id == Disk.machine_id))
        .where(
            Vpg.tenant_id == session.tenant_id,
            Machine.host_id == host_id,
            Vpg.lifecycle.in_(sorted(LIVE)),
        )
    )
    groups: dict[UUID, Vpg] = {}
    disks: dict[UUID, list[DiskRow]] = defaultdict(list)
    for vpg, name, disk, machine in found:
        groups[vpg.id] = vpg
        disks[vpg.id].append(DiskRow(show(Kind.DISK, disk.id), name, machine, disk.source))
    host = HostRow(
        show(Kind.TENANT, session.tenant_id), show(Kind.HOST, host_id), version or 0, doors
    )
    rows = [_row(vpg, disks[vpg.id]) for vpg in groups.values()]
    return make_assignment(host, rows)


def _row(vpg: Vpg, disks: list[DiskRow]) -> GroupRow:
    lifecycle = Lifecycle(vpg.lifecycle)
    return GroupRow(show(Kind.VPG, vpg.id), vpg.name, lifecycle, vpg.settings, disks)


async def hosts_of(session: TenantSession, vpg_id: UUID) -> set[UUID]:
    """The hosts that have a disk of this group."""
    found = await session.orm.scalars(
        select(Machine.host_id)
        .join(
            VpgDisk,
            (VpgDisk.tenant_id == Machine.tenant_id) & (VpgDisk.machine_id == Machine.id),
        )
        .where(Machine.tenant_id == session.tenant_id, VpgDisk.vpg_id == vpg_id)
        .distinct()
    )
    return set(found)


async def raise_assignments(
    session: TenantSession, host_ids: Collection[UUID], now: datetime
) -> dict[UUID, int]:
    """What these hosts are told has changed: their new versions. One query, hosts in order, so
    that two transactions cannot wait for each other.
    """
    if not host_ids:
        return {}
    table = HostAssignment
    rows = [
        {
            "tenant_id": session.tenant_id,
            "host_id": host_id,
            "version": 1,
            "held_version": 0,
            "changed_at": now,
        }
        for host_id in sorted(host_ids)
    ]
    raised = insert(table).values(rows)
    found = await session.orm.execute(
        raised.on_conflict_do_update(
            index_elements=["tenant_id", "host_id"],
            set_={"version": table.version + 1, "changed_at": now},
        ).returning(table.host_id, table.version)
    )
    return {row.host_id: row.version for row in found}
