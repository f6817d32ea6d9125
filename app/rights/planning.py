"""Plans of changes of rights: made, shown, applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from app.entries.service import note_act
from app.http.unit import ProviderUnit, TenantUnit
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.models import (
    DataNode,
    JournalStore,
    Machine,
    Placement,
    RightsPlan,
    Site,
    Tenant,
    Vpg,
    VpgDisk,
)
from app.models.base import key_of
from app.models.datanodes import NodeState
from app.pools.scope import scope_of
from app.rights.effects import Effect, Facts, Spot, Standing, effects_of
from app.rights.placing import shut_out, tell_withdrawn
from app.rights.policies import (
    load_policy,
    policy_json,
    read_policy,
    write_policy,
)
from app.rights.policy import Policy
from app.rights.schemas import PolicyInput, RightsEffectOutput, RightsPlanOutput
from app.rights.state import PlacementState
from app.rights.telling import tell_hosts
from app.rights.territory import may_hold
from app.rights.violations import review
from app.tenants.service import locked_tenant
from app.vpgs.state import LIVE

PLAN_LIFE = timedelta(minutes=15)
POLICY, WITHDRAWAL = "policy", "withdrawal"
_GONE = (PlacementState.WITHDRAWING, PlacementState.WITHDRAWN)


async def plan_policy(unit: ProviderUnit, tenant: Tenant, wanted: PolicyInput) -> RightsPlan:
    """Work out what a policy would do, and keep it for 15 minutes; Problem `invalid_fields`."""
    after, _ = await read_policy(unit, wanted)
    nodes, stores = await _of_deployment(unit)
    async with scope_of(unit, tenant.id) as inside:
        own = await locked_tenant(inside.session)
        before = await load_policy(inside, own)
        standings = await _standings(inside, after)
        facts = Facts(standings, nodes, stores, await _recovery_sites(inside))
        change = wanted.model_dump(mode="json")
        return await _keep(
            inside, (POLICY, own.id, own.version), change, effects_of(before, after, facts)
        )


async def _keep(
    inside: TenantUnit,
    about: tuple[str, UUID, int],
    change: dict[str, Any],
    effects: Sequence[Effect],
) -> RightsPlan:
    """Enter a plan `about` (kind, subject, the subject's version)."""
    kind, subject, version = about
    plan = RightsPlan(
        tenant_id=inside.session.tenant_id,
        id=new_uuid(inside.now),
        created_at=inside.now,
        version=1,
        kind=kind,
        subject=subject,
        subject_version=version,
        change=change,
        effects=[vars(effect) for effect in effects],
        expires_at=inside.now + PLAN_LIFE,
        applied_at=None,
    )
    inside.session.orm.add(plan)
    await inside.session.orm.flush()
    return plan


async def _of_deployment(unit: ProviderUnit) -> tuple[list[Spot], list[Spot]]:
    nodes = await unit.session.orm.execute(
        select(DataNode.name, DataNode.territory)
        .where(DataNode.state == NodeState.ACTIVE)
        .order_by(DataNode.id)
    )
    stores = await unit.session.orm.execute(
        select(JournalStore.name, JournalStore.territory).order_by(JournalStore.id)
    )
    return (
        [Spot("data_nodes", row.name, row.territory) for row in nodes],
        [Spot("journal_stores", row.name, row.territory) for row in stores],
    )


async def _recovery_sites(inside: TenantUnit) -> list[Spot]:
    """The tenant's sites to which its groups recover. It is counted, not named: what a tenant has
    is not the provider's to see.
    """
    found = await inside.session.orm.execute(
        select(Site.id, Site.territory, func.count())
        .join(Vpg, (Vpg.tenant_id == Site.tenant_id) & (Vpg.recovery_site_id == Site.id))
        .where(Site.tenant_id == inside.session.tenant_id, Vpg.lifecycle.in_(sorted(LIVE)))
        .group_by(Site.id, Site.territory)
        .order_by(Site.id)
    )
    return [Spot("sites", show(Kind.SITE, row[0]), row[1], row[2]) for row in found]


async def _standings(inside: TenantUnit, after: Policy) -> list[Standing]:
    """Where the tenant is placed, judged by this policy; one query."""
    counts = (
        select(
            Machine.host_id,
            func.count(VpgDisk.vpg_id.distinct()).label("groups"),
            func.count(Machine.id.distinct()).label("machines"),
        )
        .join(
            VpgDisk, (VpgDisk.tenant_id == Machine.tenant_id) & (VpgDisk.machine_id == Machine.id)
        )
        .where(Machine.tenant_id == inside.session.tenant_id)
        .group_by(Machine.host_id)
        .subquery()
    )
    found = await inside.session.orm.execute(
        select(Placement, Site.territory, counts.c.groups, counts.c.machines)
        .join(Site, (Site.tenant_id == Placement.tenant_id) & (Site.pool_id == Placement.pool_id))
        .outerjoin(counts, counts.c.host_id == Placement.host_id)
        .where(
            Placement.tenant_id == inside.session.tenant_id,
            Placement.state.not_in(_GONE),
        )
        .order_by(Placement.id)
    )
    return [
        Standing(
            show(Kind.PLACEMENT, row.id),
            show(Kind.POOL, row.pool_id),
            show(Kind.HOST, row.owner_host_id),
            territory,
            _allows(after, row, territory),
            groups or 0,
            machines or 0,
        )
        for row, territory, groups, machines in found
    ]


def _allows(policy: Policy, placement: Placement, territory: str) -> bool:
    right = policy.pools.get(placement.pool_id)
    is_granted = right is not None and right.allows(placement.owner_host_id)
    return is_granted and may_hold(policy.territories, territory)


async def plan_withdrawal(unit: ProviderUnit, placement: Placement) -> RightsPlan:
    """Work out what a withdrawal would do, and keep it for 15 minutes."""
    async with scope_of(unit, placement.tenant_id) as inside:
        key = show(Kind.PLACEMENT, placement.id)
        standings = [one for one in await _standings(inside, Policy()) if one.placement == key]
        effects = effects_of(Policy(), Policy(), Facts(standings, [], [], []))
        about = (WITHDRAWAL, placement.id, placement.version)
        return await _keep(inside, about, {"placement_id": key}, effects)


async def withdraw(
    unit: ProviderUnit, placement: Placement, plan_id: str | None
) -> Placement | RightsPlan:
    """Shut the tenant's process out and have the host forget it: the placement, or a new plan if
    the one that is named is stale. Problem `plan_required` where machines are protected.
    """
    is_again = placement.state in _GONE
    async with scope_of(unit, placement.tenant_id) as inside:
        stale = False
        if plan_id is not None and not is_again:
            plan = await get_plan(inside, WITHDRAWAL, placement.id, plan_id)
            stale = is_stale(inside, plan, placement.version)
            plan.applied_at = plan.applied_at if stale else inside.now
        elif not is_again:
            await _check_harmless(inside, placement)
        if not stale:
            placement = await shut_out(inside, placement.id)
    if stale:
        return await plan_withdrawal(unit, placement)
    if placement.state != PlacementState.WITHDRAWN:
        await tell_withdrawn(unit, placement)
    return placement


async def _check_harmless(inside: TenantUnit, placement: Placement) -> None:
    key = show(Kind.PLACEMENT, placement.id)
    found = [one for one in await _standings(inside, Policy()) if one.placement == key]
    if any(one.machines for one in found):
        raise Problem(
            "plan_required",
            f"{found[0].machines} machines are protected there: a withdrawal is planned first.",
            hint="Send it to `:plan`, read what it would do, then withdraw with the plan's id.",
        )


async def get_plan(inside: TenantUnit, kind: str, subject: UUID, text: str) -> RightsPlan:
    """The plan of this kind for this subject, locked; Problem `not_found`."""
    try:
        key = key_of(inside.session.tenant_id, parse(Kind.PLAN, text))
    except BadId:
        raise not_found() from None
    plan = await inside.session.orm.get(RightsPlan, key, with_for_update=True)
    if plan is None or (plan.kind, plan.subject) != (kind, subject):
        raise not_found()
    return plan


def is_stale(inside: TenantUnit, plan: RightsPlan, version: int) -> bool:
    """Whether its subject is no longer as it read it, its time is over, or it was applied."""
    is_over = plan.applied_at is not None or plan.expires_at <= inside.now
    return is_over or plan.subject_version != version


async def apply_policy(unit: ProviderUnit, tenant: Tenant, plan_id: str) -> Policy | RightsPlan:
    """Do what a plan says: the policy that holds now, or a new plan if this one is stale.

    Tenants are withdrawn from hosts that it no longer allows, hosts are told other doors, groups
    that name a forbidden place raise an alert. Nothing is deleted.
    """
    async with scope_of(unit, tenant.id) as inside:
        plan = await get_plan(inside, POLICY, tenant.id, plan_id)
        own = await locked_tenant(inside.session)
        wanted = PolicyInput.model_validate(plan.change)
        stale = is_stale(inside, plan, own.version)
        if not stale:
            policy, facts = await read_policy(unit, wanted)
            plan.applied_at = inside.now
            await write_policy(inside, own, policy, facts)
            gone = await _withdraw_forbidden(inside, policy)
            await tell_hosts(inside.session, inside.now)
            inside.happenings += await review(inside.session, inside.now)
    if stale:
        return await plan_policy(unit, tenant, wanted)
    for placement in gone:
        await tell_withdrawn(unit, placement)
    details: Mapping[str, object] = {**policy_json(policy), "withdrawn": len(gone)}
    await note_act(unit, "policies.applied", show(Kind.TENANT, tenant.id), dict(details))
    return policy


async def _withdraw_forbidden(inside: TenantUnit, policy: Policy) -> list[Placement]:
    forbidden = [one for one in await _standings(inside, policy) if not one.is_allowed]
    return [await shut_out(inside, parse(Kind.PLACEMENT, one.placement)) for one in forbidden]


def show_plan(plan: RightsPlan) -> RightsPlanOutput:
    """As the API shows it."""
    return RightsPlanOutput(
        id=show(Kind.PLAN, plan.id),
        kind=plan.kind,
        tenant_id=show(Kind.TENANT, plan.tenant_id),
        effects=[RightsEffectOutput(**effect) for effect in plan.effects],
        created_at=plan.created_at,
        expires_at=plan.expires_at,
    )
