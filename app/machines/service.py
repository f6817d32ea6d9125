"""Machines of a tenant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import Kind, show
from app.machines.schemas import DiskOutput, LabelsInput, MachineOutput
from app.models import Disk, Host, Machine, VpgDisk


async def get_machine(unit: TenantUnit, machine_id: str, *, lock: bool = False) -> Machine:
    """The tenant's machine; Problem `not_found` for every other id."""
    return await find(unit, Machine, Kind.MACHINE, machine_id, lock=lock)


async def disks_of(session: TenantSession, machine_ids: Sequence[UUID]) -> dict[UUID, list[Disk]]:
    """The disks of machines, by name; one query."""
    found = await session.orm.scalars(
        select(Disk)
        .where(Disk.tenant_id == session.tenant_id, Disk.machine_id.in_(machine_ids))
        .order_by(Disk.name)
    )
    by_machine: dict[UUID, list[Disk]] = defaultdict(list)
    for disk in found:
        by_machine[disk.machine_id].append(disk)
    return by_machine


async def label_machine(unit: TenantUnit, machine: Machine, wanted: LabelsInput) -> None:
    """Give a machine these labels and no others."""
    if machine.labels != wanted.labels:
        machine.labels = dict(wanted.labels)
        machine.version += 1
        unit.note("machines.labelled", show(Kind.MACHINE, machine.id), labels=machine.labels)


async def show_machines(session: TenantSession, machines: Sequence[Machine]) -> list[MachineOutput]:
    """As the API shows them; three queries, however many."""
    ids = [machine.id for machine in machines]
    disks = await disks_of(session, ids)
    found = await session.orm.execute(
        select(VpgDisk.disk_id, VpgDisk.vpg_id).where(
            VpgDisk.tenant_id == session.tenant_id, VpgDisk.machine_id.in_(ids)
        )
    )
    groups = {row.disk_id: row.vpg_id for row in found}
    pools = await pools_of(session, {machine.host_id for machine in machines})
    return [_show(machine, disks[machine.id], groups, pools) for machine in machines]


async def pools_of(session: TenantSession, host_ids: Collection[UUID]) -> dict[UUID, UUID]:
    """By placed host: the pool as which the tenant sees it. One query."""
    found = await session.orm.execute(
        select(Host.id, Host.pool_id).where(
            Host.tenant_id == session.tenant_id,
            Host.id.in_(sorted(host_ids)),
            Host.placement_id.is_not(None),
        )
    )
    return {row.id: row.pool_id for row in found}


def show_place(host_id: UUID, pools: Mapping[UUID, UUID]) -> dict[str, str | None]:
    """Where a machine is, as its tenant may know: `host_id` or `pool_id`."""
    pool_id = pools.get(host_id)
    return {
        "host_id": show(Kind.HOST, host_id) if pool_id is None else None,
        "pool_id": None if pool_id is None else show(Kind.POOL, pool_id),
    }


def _show(
    machine: Machine,
    disks: list[Disk],
    groups: Mapping[UUID, UUID],
    pools: Mapping[UUID, UUID],
) -> MachineOutput:
    return MachineOutput(
        id=show(Kind.MACHINE, machine.id),
        name=machine.name,
        **show_place(machine.host_id, pools),
        uuid=machine.uuid,
        labels=machine.labels,
        is_present=machine.is_present,
        disks=[
            DiskOutput(
                id=show(Kind.DISK, disk.id),
                name=disk.name,
                bytes=disk.bytes,
                is_present=disk.is_present,
                vpg_id=show(Kind.VPG, groups[disk.id]) if disk.id in groups else None,
            )
            for disk in disks
        ],
        created_at=machine.created_at,
        seen_at=machine.seen_at,
    )
