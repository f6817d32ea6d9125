"""Groups of a tenant: made, changed, paused, removed. What hosts are told follows in the same
transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.database.sessions import TenantSession
from app.datanodes.schemas import DEFAULT_STORE
from app.dsm.commands import CommandKind, request_command
from app.dsm.commands import Wanted as Command
from app.hosts.service import load_hosts
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.privileges import Privilege
from app.identity.scopes import Place
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem, not_found
from app.kit.transitions import IllegalTransition
from app.models import Disk, Operation, Site, Vpg, VpgDisk, VpgStatus
from app.operations.service import Wanted as WantedOperation
from app.operations.service import open_operation
from app.profiles.service import get_profile
from app.rights.places import permitted_of
from app.rights.territory import check_may_hold
from app.rights.violations import review
from app.sites.service import get_site
from app.tenants.schemas import Plan
from app.vpgs.assigning import hosts_of, raise_assignments
from app.vpgs.facts import DELETE, finish_removal
from app.vpgs.members import add_members, check_plan, find_members, plan_of, remove_members
from app.vpgs.plan import is_tighter
from app.vpgs.quotas import check_rpo
from app.vpgs.schemas import (
    ForceSyncInput,
    MemberInput,
    VpgBody,
    VpgChange,
    VpgWhole,
)
from app.vpgs.settings import Settings
from app.vpgs.state import (
    CHANGEABLE,
    LIFECYCLE,
    Lifecycle,
    LifecycleEvent,
)

FORCE_SYNC = "vpg.force_sync"
#: What a host has to be told of when it changes.
_SITES = ("protected_site_id", "recovery_site_id")
_TOLD = ("rpo_seconds", "replication_mbit_per_s", "sync_mbit_per_s", "ring_mib")


async def get_vpg(unit: TenantUnit, vpg_id: str, *, lock: bool = False) -> Vpg:
    """The tenant's group; Problem `not_found` for every other id."""
    return await find(unit, Vpg, Kind.VPG, vpg_id, lock=lock)


async def get_status(session: TenantSession, vpg: Vpg) -> VpgStatus:
    """What is known of a group."""
    return await session.orm.get_one(VpgStatus, {"tenant_id": vpg.tenant_id, "vpg_id": vpg.id})


async def find_status(unit: TenantUnit, vpg_id: str) -> VpgStatus:
    """What is known of the tenant's group; Problem `not_found` for every other id."""
    try:
        key = parse(Kind.VPG, vpg_id)
    except BadId:
        raise not_found() from None
    if unit.is_narrowed:
        await get_vpg(unit, vpg_id)
    where = {"tenant_id": unit.session.tenant_id, "vpg_id": key}
    found = await unit.session.orm.get(VpgStatus, where)
    if found is None:
        raise not_found()
    return found


async def find_by_name(unit: TenantUnit, name: str) -> Vpg | None:
    """The tenant's group of this name, locked, unless it was removed; Problem `privilege_missing`.
    One that the caller may not see is none; its name is taken all the same.
    """
    found = await unit.session.orm.scalars(
        select(Vpg)
        .where(
            Vpg.tenant_id == unit.session.tenant_id,
            Vpg.name == name,
            Vpg.lifecycle != Lifecycle.REMOVED,
        )
        .with_for_update()
    )
    vpg = found.one_or_none()
    seen = unit.principal.reach(Privilege.VPGS_READ)
    if vpg is None or not seen.covers(Place(vpg.protected_site_id, vpg.id)):
        return None
    unit.require_at(vpg.protected_site_id, vpg.id)
    return vpg


async def resolve(unit: TenantUnit, wanted: VpgBody, vpg: Vpg | None = None) -> dict[str, Any]:
    """The columns of a group's settings; Problem `not_found` for what they name in vain. What the
    group that is changed names already stays, whether the caller sees it or not.
    """
    profile = wanted.profile_id and await get_profile(unit, wanted.profile_id)
    sites = {
        field: await _site(unit, getattr(wanted, field), getattr(vpg, field, None))
        for field in ("protected_site_id", "recovery_site_id")
    }
    if wanted.store != DEFAULT_STORE:
        raise Problem(
            "settings_refused",
            "The deployment has no journal store of this name.",
            hint=f"Name {DEFAULT_STORE!r}, or ask the provider.",
        )
    settings = wanted.settings
    if settings is None:
        settings = Settings(**profile.settings) if profile else Settings()
    return {
        "description": wanted.description,
        "labels": dict(wanted.labels),
        "settings": settings.model_dump(mode="json"),
        "profile_id": profile.id if profile else None,
        "store": wanted.store,
        **sites,
    }


async def choose_site(unit: TenantUnit, site_id: str) -> Site:
    """A site for a group; Problems `not_found`, `jurisdiction`."""
    site = await get_site(unit, site_id)
    check_may_hold(await permitted_of(unit.session), site.territory, site.name)
    return site


async def _site(unit: TenantUnit, text: str | None, before: UUID | None) -> UUID | None:
    if text is None or (before and text == show(Kind.SITE, before)):
        return before if text else None
    return (await choose_site(unit, text)).id


def check_settings(plan: Plan, vpg: Vpg) -> None:
    """Problem `settings_refused` for what the plan does not allow."""
    check_rpo(plan, vpg.settings["rpo_seconds"], vpg.settings["checkpoint_seconds"])


async def replace_vpg(unit: TenantUnit, vpg: Vpg, wanted: VpgChange) -> None:
    """Give a group these settings; Problems as `create_vpg`, `plan_required` for what destroys
    history or moves the journal.
    """
    check_changeable(vpg)
    values = {"name": wanted.name, **await resolve(unit, wanted, vpg)}
    unit.require_at(values["protected_site_id"], vpg.id)
    _check_harmless(vpg, values)
    await change_vpg(unit, vpg, values)


async def replace_whole(unit: TenantUnit, vpg: Vpg, wanted: VpgWhole) -> None:
    """Make a group as it is written; Problems as `replace_vpg`. Problem `plan_required` where a
    machine of the group is not named.
    """
    found = await unit.session.orm.scalars(
        select(VpgDisk.machine_id)
        .where(VpgDisk.tenant_id == vpg.tenant_id, VpgDisk.vpg_id == vpg.id)
        .distinct()
    )
    named = {one.machine_id for one in wanted.machines}
    missing = {show(Kind.MACHINE, machine_id) for machine_id in found} - named
    if missing:
        raise Problem(
            "plan_required",
            f"{len(missing)} machines of the group are not named; taking them out is planned.",
            hint="Name them, or send `remove_machines` to `:plan`.",
        )
    change = VpgChange(name=vpg.name, **wanted.model_dump(exclude={"machines"}))
    await replace_vpg(unit, vpg, change)
    if wanted.machines:
        await add_machines(unit, vpg, wanted.machines)


def check_protecting(vpg: Vpg) -> None:
    """IllegalTransition for a group whose hosts are to send nothing."""
    lifecycle = Lifecycle(vpg.lifecycle)
    if lifecycle not in (Lifecycle.PROTECTING, Lifecycle.INITIALISING):
        raise IllegalTransition(lifecycle, LifecycleEvent.SYNCED, LIFECYCLE.events_of(lifecycle))


def check_changeable(vpg: Vpg) -> None:
    """IllegalTransition for a group that is removed or on its way."""
    if vpg.lifecycle not in CHANGEABLE:
        raise IllegalTransition(Lifecycle(vpg.lifecycle), LifecycleEvent.FILL, [])


def _check_harmless(vpg: Vpg, values: dict[str, Any]) -> None:
    risky = [
        name
        for name, is_risky in {
            "history_hours": values["settings"]["history_hours"] < vpg.settings["history_hours"],
            "journal_bytes_max": is_tighter(vpg.settings, values["settings"]),
            "recovery_site_id": vpg.recovery_site_id is not None
            and values["recovery_site_id"] != vpg.recovery_site_id,
        }.items()
        if is_risky
    ]
    if risky and vpg.lifecycle != Lifecycle.DRAFT:
        raise Problem(
            "plan_required",
            f"Changing {' and '.join(risky)} so is planned before it is done.",
            hint="Send it to `:plan`, read what it would do, then `:apply` the plan.",
        )


async def change_vpg(unit: TenantUnit, vpg: Vpg, values: dict[str, Any]) -> None:
    """Write columns of a group, tell its hosts, note what changed. Equal values change nothing."""
    before = {name: getattr(vpg, name) for name in values}
    if before == values:
        return
    # Asked for first: a question sends what is changed, and a name may be another group's.
    plan = await plan_of(unit)
    for name, value in values.items():
        setattr(vpg, name, value)
    check_settings(plan, vpg)
    vpg.version += 1
    await _flush(unit, vpg.name)
    if before.get("name", vpg.name) != vpg.name or _is_told(before, values):
        await _tell(unit, await hosts_of(unit.session, vpg.id))
    if any(before.get(name) != values.get(name) for name in _SITES):
        unit.happenings += await review(unit.session, unit.now)
    changes = {
        name: [_plain(before[name]), _plain(value)]
        for name, value in values.items()
        if before[name] != value
    }
    unit.note("vpgs.changed", show(Kind.VPG, vpg.id), changes=changes)


def _is_told(before: dict[str, Any], after: dict[str, Any]) -> bool:
    if "settings" not in after:
        return False
    return any(before["settings"][name] != after["settings"][name] for name in _TOLD)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


async def add_machines(unit: TenantUnit, vpg: Vpg, wanted: Sequence[MemberInput]) -> None:
    """Machines come into a group; Problems as `create_vpg`. Those inside already change nothing."""
    check_changeable(vpg)
    plan = await plan_of(unit)
    await fill(unit, vpg, wanted)
    await check_plan(unit, plan)


async def fill(unit: TenantUnit, vpg: Vpg, wanted: Sequence[MemberInput]) -> None:
    """Enter machines and tell their hosts; whether the plan allows it is checked by the caller."""
    members = await find_members(unit, wanted)
    hosts = await add_members(unit, vpg, members)
    if not hosts:
        return
    if vpg.lifecycle == Lifecycle.DRAFT:
        _move(vpg, LifecycleEvent.FILL)
    vpg.version += 1
    await unit.session.orm.flush()
    await _tell(unit, hosts)
    machines = [show(Kind.MACHINE, member.machine.id) for member in members]
    unit.note("vpgs.machines_added", show(Kind.VPG, vpg.id), machines=machines)


async def remove_machines(unit: TenantUnit, vpg: Vpg, machine_ids: Collection[UUID]) -> None:
    """Machines go out of a group; their history stays. Problem `not_found` for others."""
    check_changeable(vpg)
    hosts = await hosts_of(unit.session, vpg.id)
    found = await unit.session.orm.scalars(
        select(VpgDisk.machine_id)
        .where(VpgDisk.tenant_id == vpg.tenant_id, VpgDisk.vpg_id == vpg.id)
        .distinct()
    )
    inside = set(found)
    if not set(machine_ids) <= inside:
        raise not_found()
    await remove_members(unit.session, vpg, machine_ids)
    if inside == set(machine_ids):
        _move(vpg, LifecycleEvent.EMPTY)
    vpg.version += 1
    await _tell(unit, hosts)
    machines = [show(Kind.MACHINE, machine_id) for machine_id in sorted(machine_ids)]
    unit.note("vpgs.machines_removed", show(Kind.VPG, vpg.id), machines=machines)


async def pause_vpg(unit: TenantUnit, vpg: Vpg) -> None:
    """Stop sending. Nothing that is stored is lost. Repeats change nothing."""
    if vpg.lifecycle == Lifecycle.PAUSED:
        return
    _move(vpg, LifecycleEvent.PAUSE)
    await _switched(unit, vpg, "vpgs.paused")


async def resume_vpg(unit: TenantUnit, vpg: Vpg) -> None:
    """Go on sending. Repeats change nothing."""
    if vpg.lifecycle in (Lifecycle.PROTECTING, Lifecycle.INITIALISING):
        return
    status = await get_status(unit.session, vpg)
    is_initial = status.protected_since is None
    _move(vpg, LifecycleEvent.RESUME_INITIAL if is_initial else LifecycleEvent.RESUME)
    await _switched(unit, vpg, "vpgs.resumed")


async def _switched(unit: TenantUnit, vpg: Vpg, what: str) -> None:
    vpg.version += 1
    await _tell(unit, await hosts_of(unit.session, vpg.id))
    unit.note(what, show(Kind.VPG, vpg.id), name=vpg.name)


async def force_sync(unit: TenantUnit, vpg: Vpg, wanted: ForceSyncInput) -> Operation:
    """Read disks again and bring over what differs; IllegalTransition unless it is protected."""
    check_protecting(vpg)
    if wanted.disk_id is not None:
        await _check_member_disk(unit, vpg, wanted.disk_id)
    shown = show(Kind.VPG, vpg.id)
    asked = WantedOperation(
        FORCE_SYNC,
        shown,
        {"disk": wanted.disk_id, "full": wanted.full},
        ("request", "read", "store"),
    )
    operation = open_operation(unit.session, asked, unit.circumstances)
    await ask_managers(unit, vpg, CommandKind.FORCE_SYNC, operation.id)
    unit.note("vpgs.sync_forced", shown, operation=show(Kind.OPERATION, operation.id))
    return operation


async def _check_member_disk(unit: TenantUnit, vpg: Vpg, disk_id: str) -> None:
    disk = await find(unit, Disk, Kind.DISK, disk_id)
    row = await unit.session.orm.get(
        VpgDisk, {"tenant_id": unit.session.tenant_id, "disk_id": disk.id}
    )
    if row is None or row.vpg_id != vpg.id:
        raise not_found()


async def delete_vpg(unit: TenantUnit, vpg: Vpg) -> Operation:
    """End a group's protection and keep its journal. Done when its hosts have heard of it."""
    _move(vpg, LifecycleEvent.REMOVE)
    vpg.version += 1
    vpg.profile_id = None
    hosts = await hosts_of(unit.session, vpg.id)
    await remove_members(unit.session, vpg)
    versions = await _tell(unit, hosts)
    shown = show(Kind.VPG, vpg.id)
    told = {show(Kind.HOST, host): version for host, version in versions.items()}
    asked = WantedOperation(DELETE, shown, {"hosts": told}, is_cancellable=False)
    operation = open_operation(unit.session, asked, unit.circumstances)
    unit.note("vpgs.delete_requested", shown, name=vpg.name)
    await unit.session.orm.flush()
    unit.happenings += await finish_removal(unit.session, operation, unit.now)
    return operation


async def _tell(unit: TenantUnit, hosts: Collection[UUID]) -> dict[UUID, int]:
    """What these hosts are told has changed: their managers send it to them."""
    for host in await load_hosts(unit.session, hosts):
        command = Command(CommandKind.ASSIGN, host.id, host.id, unit.now)
        await request_command(unit.session, command)
    return await raise_assignments(unit.session, hosts, unit.now)


async def ask_managers(unit: TenantUnit, vpg: Vpg, kind: CommandKind, operation_id: UUID) -> None:
    """Ask the manager of each site that has a host of the group."""
    hosts = await load_hosts(unit.session, await hosts_of(unit.session, vpg.id))
    by_site = {host.site_id: host.id for host in hosts}
    for host_id in by_site.values():
        command = Command(kind, host_id, vpg.id, unit.now, operation_id)
        await request_command(unit.session, command)


def _move(vpg: Vpg, event: LifecycleEvent) -> None:
    vpg.lifecycle = LIFECYCLE.after(Lifecycle(vpg.lifecycle), event)


async def _flush(unit: TenantUnit, name: str) -> None:
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise name_taken(name) from None


def name_taken(name: str) -> Problem:
    """Two groups that are not removed never have the same name."""
    return Problem("name_taken", f"There is a group named {name} already.")
