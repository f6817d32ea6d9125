"""On what terms a tenant is served: its plan, and whether it may come in."""

from __future__ import annotations

from collections.abc import Callable

from app.entries.service import note_act
from app.http.unit import ProviderUnit
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models import Tenant
from app.models.tenants import TenantState
from app.pools.scope import scope_of
from app.tenants.schemas import Plan
from app.tenants.service import find_tenant, locked_tenant
from app.tenants.state import TENANT, TenantEvent


async def change_plan(
    unit: ProviderUnit, text: str, wanted: Plan, check_version: Callable[[int], None]
) -> Tenant:
    """Give a tenant this plan. What it has already stays, also beyond a lower limit. Problems
    `not_found`, `settings_refused` where territories differ, and what `check_version` raises.
    """
    tenant = await find_tenant(unit.session, text)
    async with scope_of(unit, tenant.id) as inside:
        own = await locked_tenant(inside.session)
        check_version(own.version)
        before, after = Plan(**own.plan), wanted
        if before.territories != after.territories:
            raise Problem(
                "settings_refused",
                "Territories belong to the tenant's policy: what narrows them is planned first.",
                hint="Change them by the policy, and repeat this with what the plan has.",
            )
        if before != after:
            own.plan, own.version = after.model_dump(), own.version + 1
            changes = _changes(before, after)
            inside.note("plan.changed", show(Kind.TENANT, own.id), changes=changes)
            await note_act(unit, "plans.changed", show(Kind.TENANT, own.id), changes)
    return own


def _changes(before: Plan, after: Plan) -> dict[str, object]:
    old, new = before.model_dump(), after.model_dump()
    return {name: [old[name], new[name]] for name in new if old[name] != new[name]}


async def move_tenant(unit: ProviderUnit, text: str, event: TenantEvent, reason: str) -> Tenant:
    """Suspend a tenant or let it in again; Problems `not_found`, `illegal_transition`.

    Its people, its keys and its hosts' connections to managers are out; streams go on into the
    journal, and nothing of it is deleted.
    """
    tenant = await find_tenant(unit.session, text)
    async with scope_of(unit, tenant.id) as inside:
        own = await locked_tenant(inside.session)
        own.state = TENANT.after(TenantState(own.state), event)
        own.version += 1
        action, subject = f"tenants.{own.state}", show(Kind.TENANT, own.id)
        inside.note(action, subject, reason=reason)
        await note_act(unit, action, subject, {"reason": reason})
    return own
