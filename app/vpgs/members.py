"""Who is in a group: machines with their disks come in and go out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, func, select

from app.database.sessions import TenantSession
from app.http.unit import TenantUnit
from app.identity.coverage import coverage
from app.identity.principals import privilege_missing
from app.identity.privileges import Privilege
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem
from app.machines.service import disks_of, pools_of, show_place
from app.models import Disk, Machine, Vpg, VpgDisk
from app.pools.quotas import check_pools
from app.tenants.schemas import Plan
from app.tenants.service import locked_tenant
from app.vpgs.assignment import disk_name
from app.vpgs.quotas import Usage, check_usage
from app.vpgs.retained import RETAINED
from app.vpgs.schemas import MemberDiskOutput, MemberInput, MemberOutput
from app.vpgs.state import Lifecycle


@dataclass(frozen=True)
class Member:
    """A machine with those of its disks that are wanted."""

    machine: Machine
    disks: list[Disk]


async def plan_of(unit: TenantUnit) -> Plan:
    """The tenant's plan. Its row is locked: what uses the plan up comes one after the other."""
    return Plan(**(await locked_tenant(unit.session)).plan)


#: What a tenant protects. Made once: putting it together costs more than asking it.
USAGE = (
    select(
        select(func.count())
        .where(Vpg.tenant_id == bindparam("tenant_id"), Vpg.lifecycle != Lifecycle.REMOVED)
        .scalar_subquery(),
        func.count(VpgDisk.machine_id.distinct()),
        func.count(),
        func.coalesce(func.sum(Disk.bytes), 0),
        RETAINED.scalar_subquery(),
    )
    .select_from(VpgDisk)
    .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
    .where(VpgDisk.tenant_id == bindparam("tenant_id"))
)


async def check_plan(unit: TenantUnit, plan: Plan) -> None:
    """Problem `quota_exceeded` if what is entered by now is more than the plan or, in a pool, the
    policy allows.
    """
    await unit.session.orm.flush()
    found = await unit.session.orm.execute(USAGE, {"tenant_id": unit.session.tenant_id})
    check_usage(plan, usage_of(found.one()))
    await check_pools(unit.session)


def usage_of(row: Row[int, int, int, Decimal, Decimal]) -> Usage:
    """What USAGE found."""
    vpgs, machines, disks, size, retained = row
    return Usage(vpgs, machines, disks, int(size), int(retained))


async def find_members(unit: TenantUnit, wanted: Sequence[MemberInput]) -> list[Member]:
    """The machines and disks that are meant; Problem `invalid_fields` for what the caller does not
    see, `privilege_missing` for what is not the caller's to protect. A fixed number of queries.
    """
    keys = [_key(Kind.MACHINE, one.machine_id, place) for place, one in enumerate(wanted)]
    machines = await _machines(unit, keys)
    disks = await disks_of(unit.session, list(machines))
    members = []
    for place, (one, key) in enumerate(zip(wanted, keys, strict=True)):
        if key not in machines or key in keys[:place]:
            raise _wrong(place, "There is no such machine, or it is named twice.")
        members.append(Member(machines[key], _chosen(one, disks[key], place)))
    return members


async def _machines(unit: TenantUnit, keys: Collection[UUID]) -> dict[UUID, Machine]:
    readable, allowed = [
        await coverage(unit.session, Machine, unit.principal.reach(privilege))
        for privilege in (Privilege.MACHINES_READ, unit.privilege)
    ]
    found = await unit.session.orm.execute(
        select(Machine, allowed.label("allowed")).where(
            Machine.tenant_id == unit.session.tenant_id, Machine.id.in_(sorted(keys)), readable
        )
    )
    rows = found.all()
    if not all(row.allowed for row in rows):
        raise privilege_missing(unit.privilege)
    return {row[0].id: row[0] for row in rows}


def _chosen(wanted: MemberInput, disks: list[Disk], place: int) -> list[Disk]:
    present = [disk for disk in disks if disk.is_present]
    if wanted.disk_ids is not None:
        keys = {_key(Kind.DISK, text, place) for text in wanted.disk_ids}
        chosen = [disk for disk in present if disk.id in keys]
        if len(chosen) != len(keys):
            raise _wrong(place, "The machine has no such disk.")
        return chosen
    if not present:
        raise _wrong(place, "The machine has no disk.")
    return present


def _key(kind: Kind, text: str, place: int) -> UUID:
    try:
        return parse(kind, text)
    except BadId as error:
        raise _wrong(place, str(error)) from None


def _wrong(place: int, message: str) -> Problem:
    field = {"field": f"body.machines.{place}", "message": message}
    return Problem("invalid_fields", hint="Mend the fields that are listed.", errors=[field])


async def add_members(unit: TenantUnit, vpg: Vpg, members: Sequence[Member]) -> set[UUID]:
    """Enter disks that are not in the group yet: the hosts that are concerned. Problem
    `disk_protected` for a disk of another group. One query.
    """
    wanted = {disk.id for member in members for disk in member.disks}
    found = await unit.session.orm.scalars(
        select(VpgDisk).where(
            VpgDisk.tenant_id == unit.session.tenant_id,
            (VpgDisk.vpg_id == vpg.id) | VpgDisk.disk_id.in_(sorted(wanted)),
        )
    )
    rows = list(found)
    elsewhere = [row for row in rows if row.vpg_id != vpg.id]
    if elsewhere:
        raise Problem(
            "disk_protected",
            f"The disk {show(Kind.DISK, elsewhere[0].disk_id)} is in another group.",
            hint="Remove it from that group first. A disk is in one group.",
        )
    taken, inside = {row.name for row in rows}, {row.disk_id for row in rows}
    hosts = set()
    for member in members:
        for disk in member.disks:
            if disk.id in inside:
                continue
            name = disk_name(member.machine.name, disk.name, disk.id, taken)
            taken.add(name)
            unit.session.orm.add(_row(unit, vpg, disk, name))
            hosts.add(member.machine.host_id)
    return hosts


def _row(unit: TenantUnit, vpg: Vpg, disk: Disk, name: str) -> VpgDisk:
    return VpgDisk(
        tenant_id=unit.session.tenant_id,
        disk_id=disk.id,
        vpg_id=vpg.id,
        machine_id=disk.machine_id,
        name=name,
        added_at=unit.now,
    )


async def remove_members(
    session: TenantSession, vpg: Vpg, machine_ids: Collection[UUID] | None = None
) -> None:
    """Take these machines' disks out of the group; None: all. What is stored of them stays."""
    gone = delete(VpgDisk).where(VpgDisk.tenant_id == session.tenant_id, VpgDisk.vpg_id == vpg.id)
    if machine_ids is not None:
        gone = gone.where(VpgDisk.machine_id.in_(sorted(machine_ids)))
    await session.orm.execute(gone)


async def show_members(session: TenantSession, vpg_id: UUID) -> list[MemberOutput]:
    """The group's machines with their disks, by name; two queries."""
    found = await session.orm.execute(
        select(VpgDisk, Disk.bytes, Machine)
        .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
        .join(
            Machine,
            (Machine.tenant_id == VpgDisk.tenant_id) & (Machine.id == VpgDisk.machine_id),
        )
        .where(VpgDisk.tenant_id == session.tenant_id, VpgDisk.vpg_id == vpg_id)
        .order_by(Machine.name, Machine.id, VpgDisk.name)
    )
    machines: dict[UUID, Machine] = {}
    disks: dict[UUID, list[MemberDiskOutput]] = defaultdict(list)
    for row, size, machine in found:
        machines[machine.id] = machine
        shown = show(Kind.DISK, row.disk_id)
        disks[machine.id].append(
            MemberDiskOutput(disk_id=shown, name=row.name, bytes=size, added_at=row.added_at)
        )
    pools = await pools_of(session, {machine.host_id for machine in machines.values()})
    return [
        MemberOutput(
            machine_id=show(Kind.MACHINE, machine.id),
            name=machine.name,
            **show_place(machine.host_id, pools),
            is_present=machine.is_present,
            disks=disks[machine.id],
        )
        for machine in machines.values()
    ]
