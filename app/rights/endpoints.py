"""`/v1/provider/tenants/{id}/policy` and `/v1/provider/placements`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Response, status
from starlette.responses import JSONResponse

from app.entries.service import note_act
from app.http.etags import check_etag, put_etag
from app.http.listing import Limit
from app.http.lookup import parse_filter
from app.http.routing import provider_router, requires
from app.http.unit import ProviderUnit, provider_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind
from app.kit.paging import LIMIT_DEFAULT
from app.kit.problems import MEDIA_TYPE, Problem
from app.models import RightsPlan
from app.pools.schemas import ProviderHostOutput
from app.pools.scope import scope_of
from app.pools.service import show_own_host
from app.rights import placing, planning, policies
from app.rights.policy import is_narrower
from app.rights.schemas import (
    PlacementInput,
    PlacementOutput,
    PlacementPage,
    PlanIdInput,
    PolicyInput,
    PolicyOutput,
    RightsPlanOutput,
    WithdrawalInput,
)
from app.rights.state import PlacementState
from app.rights.telling import tell_hosts
from app.rights.violations import review
from app.tenants.service import get_tenant, locked_tenant

router = provider_router("provider")
Unit = Annotated[ProviderUnit, Depends(provider_unit)]
_RIGHTS = [requires(Privilege.PROVIDER_RIGHTS)]
_ACCEPTED = status.HTTP_202_ACCEPTED


@router.get("/tenants/{tenant_id}/policy", dependencies=_RIGHTS, summary="Get a tenant's policy")
async def get_policy(unit: Unit, tenant_id: str, response: Response) -> PolicyOutput:
    """Which territories and which pools of the provider's it may use."""
    tenant = await get_tenant(unit.session, tenant_id)
    async with scope_of(unit, tenant.id) as inside:
        policy = await policies.load_policy(inside, tenant)
    put_etag(response, tenant.version)
    return policies.show_policy(tenant.id, policy)


@router.put(
    "/tenants/{tenant_id}/policy", dependencies=_RIGHTS, summary="Replace a tenant's policy"
)
async def replace_policy(
    unit: Unit, tenant_id: str, wanted: PolicyInput, request: Request, response: Response
) -> PolicyOutput:
    """All of it at once; If-Match says which version is meant. What takes a right away answers
    `plan_required`: send it to `:plan`.
    """
    tenant = await get_tenant(unit.session, tenant_id)
    policy, facts = await policies.read_policy(unit, wanted)
    async with scope_of(unit, tenant.id) as inside:
        own = await locked_tenant(inside.session)
        check_etag(request, own.version)
        if is_narrower(await policies.load_policy(inside, own), policy):
            raise Problem(
                "plan_required",
                "This takes a right away: it is planned before it is done.",
                hint="Send it to `:plan`, read what it would do, then `:apply` the plan.",
            )
        await policies.write_policy(inside, own, policy, facts)
        await tell_hosts(inside.session, inside.now)
        inside.happenings += await review(inside.session, inside.now)
    await note_act(unit, "policies.changed", tenant_id, policies.policy_json(policy))
    put_etag(response, own.version)
    return policies.show_policy(tenant.id, policy)


@router.post(
    "/tenants/{tenant_id}/policy:plan",
    dependencies=_RIGHTS,
    status_code=status.HTTP_201_CREATED,
    summary="Plan a tenant's policy",
)
async def plan_policy(unit: Unit, tenant_id: str, wanted: PolicyInput) -> RightsPlanOutput:
    """What it would take away: hosts, nodes, stores, sites. Nothing is done before `:apply`."""
    tenant = await get_tenant(unit.session, tenant_id)
    return planning.show_plan(await planning.plan_policy(unit, tenant, wanted))


@router.post(
    "/tenants/{tenant_id}/policy:apply", dependencies=_RIGHTS, summary="Apply a planned policy"
)
async def apply_policy(
    unit: Unit, tenant_id: str, wanted: PlanIdInput, request: Request
) -> PolicyOutput:
    """Do what a plan says. Streams leave forbidden places and go on to permitted ones; groups that
    name one raise `jurisdiction.violated`; nothing is deleted. One that is stale answers 409
    `plan_stale` with a new plan as `plan`.
    """
    tenant = await get_tenant(unit.session, tenant_id)
    done = await planning.apply_policy(unit, tenant, wanted.plan_id)
    if isinstance(done, RightsPlan):
        return _stale(request, done)  # type: ignore[return-value]
    return policies.show_policy(tenant.id, done)


async def _asked(
    tenant_id: Annotated[str | None, Query(max_length=80)] = None,
    host_id: Annotated[str | None, Query(max_length=80)] = None,
    state: Annotated[PlacementState | None, Query()] = None,
) -> placing.Asked:
    return placing.Asked(
        None if tenant_id is None else parse_filter(Kind.TENANT, tenant_id),
        None if host_id is None else parse_filter(Kind.HOST, host_id),
        state,
    )


@router.get("/placements", dependencies=_RIGHTS, summary="List placements")
async def list_placements(
    unit: Unit, asked: Annotated[placing.Asked, Depends(_asked)], limit: Limit = LIMIT_DEFAULT
) -> PlacementPage:
    """Which tenant is on which host of the provider's, the newest first."""
    rows = await placing.list_placements(unit, asked, limit)
    return PlacementPage(items=[placing.show_placement(row) for row in rows])


@router.post(
    "/placements", dependencies=_RIGHTS, status_code=_ACCEPTED, summary="Place a tenant on a host"
)
async def create_placement(
    unit: Unit, wanted: PlacementInput, response: Response
) -> PlacementOutput:
    """The host makes the tenant a process, a key and a connection of its own. Repeats change
    nothing once it is placed, and tell the host again before.
    """
    shown = placing.show_placement(await placing.place_tenant(unit, wanted))
    response.headers["location"] = f"/v1/provider/placements/{shown.id}"
    return shown


@router.get("/placements/{placement_id}", dependencies=_RIGHTS, summary="Get a placement")
async def get_placement(unit: Unit, placement_id: str) -> PlacementOutput:
    """One placement, and how far it is."""
    return placing.show_placement(await placing.get_placement(unit, placement_id))


@router.post(
    "/placements/{placement_id}:plan",
    dependencies=_RIGHTS,
    status_code=status.HTTP_201_CREATED,
    summary="Plan a withdrawal",
)
async def plan_withdrawal(unit: Unit, placement_id: str) -> RightsPlanOutput:
    """How many machines of how many groups would be protected no longer."""
    placement = await placing.get_placement(unit, placement_id)
    return planning.show_plan(await planning.plan_withdrawal(unit, placement))


@router.post(
    "/placements/{placement_id}:withdraw",
    dependencies=_RIGHTS,
    status_code=_ACCEPTED,
    summary="Withdraw a tenant from a host",
)
async def withdraw_placement(
    unit: Unit, placement_id: str, wanted: WithdrawalInput, request: Request
) -> PlacementOutput:
    """Its process there is shut out at once and forgotten by the host; its journals and its
    machines' disks stay. Where machines are protected it is planned first. A repeat tells the host
    again.
    """
    placement = await placing.get_placement(unit, placement_id)
    done = await planning.withdraw(unit, placement, wanted.plan_id)
    if isinstance(done, RightsPlan):
        return _stale(request, done)  # type: ignore[return-value]
    return placing.show_placement(done)


def _stale(request: Request, plan: RightsPlan) -> JSONResponse:
    """Not raised: the new plan is kept."""
    problem = Problem("plan_stale", hint="Read the new plan and apply that one.")
    shown = planning.show_plan(plan).model_dump(mode="json")
    body = {**problem.body(request.state.request_id), "plan": shown}
    return JSONResponse(body, problem.kind.status, media_type=MEDIA_TYPE)


@router.post("/hosts/{host_id}:revoke", dependencies=_RIGHTS, summary="Revoke a provider's host")
async def revoke_provider_host(unit: Unit, host_id: str) -> ProviderHostOutput:
    """Shut it out at once and for good, with every tenant's process on it; never delayed."""
    return show_own_host(await placing.revoke_own_host(unit, host_id))
