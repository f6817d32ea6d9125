"""Plans of changes: made, shown, applied; and destroying acts, which wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from app.checkpoints.figures import count_before
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.kit.transitions import IllegalTransition
from app.models import Disk, Machine, Operation, Vpg, VpgDisk, VpgPlan
from app.operations.service import Wanted as WantedOperation
from app.operations.service import find_unfinished, open_operation, succeed
from app.users.service import step_up
from app.vpgs.assigning import hosts_of
from app.vpgs.members import plan_of
from app.vpgs.plan import (
    HOUR_SECONDS,
    OF_HISTORY,
    Change,
    Group,
    Member,
    destroys_history,
    effects_of,
)
from app.vpgs.planning_schemas import (
    ApplyInput,
    ConfirmInput,
    EffectOutput,
    PlanInput,
    PlanOutput,
)
from app.vpgs.quotas import check_rpo
from app.vpgs.service import (
    change_vpg,
    check_changeable,
    choose_site,
    delete_vpg,
    get_status,
    remove_machines,
)
from app.vpgs.showing import facts_of
from app.vpgs.state import LIFECYCLE, Lifecycle, LifecycleEvent, history_actual_seconds

PLAN_LIFE = timedelta(minutes=15)
CHANGE, SHORTEN, DESTROY = "vpg.change", "vpg.shorten_history", "vpg.destroy_journal"


async def make_plan(unit: TenantUnit, vpg: Vpg, wanted: PlanInput) -> VpgPlan:
    """Work out what a change would do and keep it for 15 minutes; Problems `settings_refused`,
    `not_found`, IllegalTransition.
    """
    check_changeable(vpg)
    change = await _change_of(unit, wanted)
    if change.settings is not None:
        rules = await plan_of(unit)
        check_rpo(rules, change.settings["rpo_seconds"], change.settings["checkpoint_seconds"])
    effects = effects_of(await _read(unit, vpg, change), change)
    plan = VpgPlan(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        vpg_id=vpg.id,
        vpg_version=vpg.version,
        change=wanted.model_dump(mode="json"),
        effects=[vars(effect) for effect in effects],
        expires_at=unit.now + PLAN_LIFE,
        applied_at=None,
    )
    unit.session.orm.add(plan)
    await unit.session.orm.flush()
    return plan


async def _change_of(unit: TenantUnit, wanted: PlanInput) -> Change:
    if wanted.recovery_site_id is not None:
        await choose_site(unit, wanted.recovery_site_id)
    settings = None if wanted.settings is None else wanted.settings.model_dump(mode="json")
    removed = tuple(dict.fromkeys(wanted.remove_machines))
    return Change(settings, wanted.recovery_site_id, removed, wanted.delete)


async def _read(unit: TenantUnit, vpg: Vpg, change: Change) -> Group:
    """The group as the plan reads it; Problem `not_found` for a machine that is not in it."""
    members = await _members(unit, vpg)
    if not set(change.remove) <= members.keys():
        raise not_found()
    status = await get_status(unit.session, vpg)
    older = 0
    if change.settings is not None and status.recoverable_at is not None:
        hours = change.settings["history_hours"]
        cut = status.recoverable_at - timedelta(seconds=hours * HOUR_SECONDS)
        older = await count_before(unit.session, vpg.id, cut)
    site = vpg.recovery_site_id
    return Group(
        vpg.name,
        vpg.settings,
        None if site is None else show(Kind.SITE, site),
        members,
        len(await hosts_of(unit.session, vpg.id)),
        history_actual_seconds(facts_of(status)) or 0.0,
        older,
    )


async def _members(unit: TenantUnit, vpg: Vpg) -> dict[str, Member]:
    found = await unit.session.orm.execute(
        select(Machine.id, Machine.name, func.sum(Disk.bytes))
        .join(
            VpgDisk,
            (VpgDisk.tenant_id == Machine.tenant_id) & (VpgDisk.machine_id == Machine.id),
        )
        .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
        .where(Machine.tenant_id == unit.session.tenant_id, VpgDisk.vpg_id == vpg.id)
        .group_by(Machine.id, Machine.name)
    )
    return {show(Kind.MACHINE, row[0]): Member(row[1], int(row[2])) for row in found}


async def show_plan(unit: TenantUnit, vpg: Vpg, plan: VpgPlan) -> PlanOutput:
    """As the API shows it."""
    destroys = _destroys(vpg, plan)
    rules = await plan_of(unit)
    return PlanOutput(
        id=show(Kind.PLAN, plan.id),
        vpg_id=show(Kind.VPG, vpg.id),
        change=plan.change,
        effects=[EffectOutput(**effect) for effect in plan.effects],
        destroys_history=destroys,
        delay_seconds=rules.destroy_delay_hours * HOUR_SECONDS if destroys else 0,
        created_at=plan.created_at,
        expires_at=plan.expires_at,
    )


def _destroys(vpg: Vpg, plan: VpgPlan) -> bool:
    is_empty = vpg.lifecycle == Lifecycle.DRAFT
    return not is_empty and destroys_history(vpg.settings, plan.change["settings"])


async def get_plan(unit: TenantUnit, vpg: Vpg, plan_id: str) -> VpgPlan:
    """The group's plan, locked; Problem `not_found` for every other id."""
    plan = await find(unit, VpgPlan, Kind.PLAN, plan_id, lock=True)
    if plan.vpg_id != vpg.id:
        raise not_found()
    return plan


def is_stale(unit: TenantUnit, vpg: Vpg, plan: VpgPlan) -> bool:
    """Whether the group is no longer as the plan read it, its time is over, or it was applied."""
    is_over = plan.applied_at is not None or plan.expires_at <= unit.now
    return is_over or plan.vpg_version != vpg.version


async def apply_plan(unit: TenantUnit, vpg: Vpg, plan: VpgPlan, wanted: ApplyInput) -> Operation:
    """Do what a plan that is not stale says; what destroys history waits, and can be cancelled.
    Problems `name_not_confirmed`, `step_up_required`.
    """
    plan.applied_at = unit.now
    change = plan.change
    if _destroys(vpg, plan):
        return await _shorten_later(unit, vpg, change, wanted)
    if change["delete"]:
        return await delete_vpg(unit, vpg)
    if change["remove_machines"]:
        keys = [parse(Kind.MACHINE, text) for text in change["remove_machines"]]
        await remove_machines(unit, vpg, keys)
    else:
        await change_vpg(unit, vpg, values_of(change))
    shown = show(Kind.VPG, vpg.id)
    asked = WantedOperation(CHANGE, shown, {"change": change}, is_cancellable=False)
    operation = open_operation(unit.session, asked, unit.circumstances)
    await unit.session.orm.flush()
    outcome = {"plan": show(Kind.PLAN, plan.id)}
    unit.happenings.append(await succeed(unit.session, operation.id, unit.now, outcome))
    return operation


async def _shorten_later(
    unit: TenantUnit, vpg: Vpg, change: dict[str, Any], wanted: ApplyInput
) -> Operation:
    """What destroys history waits; all else that the change says is done at once."""
    settings = change["settings"]
    later = {name: settings[name] for name in OF_HISTORY}
    operation = await _delay(unit, vpg, SHORTEN, wanted, {"settings": later})
    kept = {name: vpg.settings[name] for name in OF_HISTORY}
    await change_vpg(unit, vpg, values_of({**change, "settings": {**settings, **kept}}))
    return operation


def values_of(change: dict[str, Any]) -> dict[str, Any]:
    """The columns of a group that a plan's change writes."""
    values = {}
    if change["settings"] is not None:
        values["settings"] = change["settings"]
    if change["recovery_site_id"] is not None:
        values["recovery_site_id"] = _site(change["recovery_site_id"])
    return values


def _site(text: str) -> UUID:
    try:
        return parse(Kind.SITE, text)
    except BadId:
        raise not_found() from None


async def destroy_journal(unit: TenantUnit, vpg: Vpg, wanted: ConfirmInput) -> Operation:
    """Destroy what is stored of a removed group, after the delay; Problems `name_not_confirmed`,
    `step_up_required`, IllegalTransition. A repeat is the one that waits.
    """
    if vpg.lifecycle != Lifecycle.REMOVED:
        lifecycle = Lifecycle(vpg.lifecycle)
        raise IllegalTransition(lifecycle, LifecycleEvent.REMOVED, LIFECYCLE.events_of(lifecycle))
    waiting = await find_unfinished(unit.session, DESTROY, show(Kind.VPG, vpg.id))
    return waiting or await _delay(unit, vpg, DESTROY, wanted, {})


async def _delay(
    unit: TenantUnit, vpg: Vpg, kind: str, wanted: ConfirmInput, told: dict[str, Any]
) -> Operation:
    if wanted.confirm_name != vpg.name or not wanted.reason:
        raise Problem(
            "name_not_confirmed",
            "This destroys history: it wants the group's name, typed, and a reason.",
            hint="Send `confirm_name` and `reason`. It then waits and can be cancelled.",
        )
    await step_up(unit, wanted.code)
    rules = await plan_of(unit)
    due = unit.now + timedelta(hours=rules.destroy_delay_hours)
    shown = show(Kind.VPG, vpg.id)
    asked = WantedOperation(kind, shown, {**told, "reason": wanted.reason}, due_at=due)
    operation = open_operation(unit.session, asked, unit.circumstances)
    facts = {"operation": show(Kind.OPERATION, operation.id), "due_at": due.isoformat()}
    unit.note("vpgs.destruction_scheduled", shown, kind=kind, reason=wanted.reason, **facts)
    return operation
