"""`/v1/vpgs`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request, Response, status
from pydantic import ValidationError
from sqlalchemy import ColumnElement
from starlette.responses import JSONResponse

from app.http.etags import check_etag, put_etag
from app.http.listing import Asked, list_rows
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.problems import MEDIA_TYPE, Problem, not_found
from app.models import Vpg
from app.operations.schemas import OperationOutput
from app.operations.service import show_operation
from app.vpgs import making, planning, service
from app.vpgs.filters import vpg_filters
from app.vpgs.members import show_members
from app.vpgs.planning_schemas import ApplyInput, ConfirmInput, PlanInput, PlanOutput
from app.vpgs.schemas import (
    ForceSyncInput,
    MemberInput,
    MemberList,
    VpgChange,
    VpgInput,
    VpgOutput,
    VpgWhole,
)
from app.vpgs.showing import find_shown, show_now, show_vpg, shown_vpgs

router = tenant_router("groups")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.VPGS_READ)]
_WRITE = [requires(Privilege.VPGS_WRITE)]
_ACCEPTED = status.HTTP_202_ACCEPTED


async def _show(unit: TenantUnit, vpg: Vpg, response: Response) -> VpgOutput:
    shown = await show_now(unit, vpg)
    put_etag(response, vpg.version)
    return shown


async def _create(unit: TenantUnit, wanted: VpgInput, response: Response) -> VpgOutput:
    vpg, shown = await making.create_vpg(unit, wanted)
    response.headers["location"] = f"/v1/vpgs/{shown.id}"
    put_etag(response, vpg.version)
    return shown


def _named(wanted: VpgWhole, name: str) -> VpgInput:
    try:
        return VpgInput(name=name, **wanted.model_dump())
    except ValidationError as error:
        field = {"field": "path.vpg_name", "message": error.errors()[0]["msg"]}
        raise Problem(
            "invalid_fields", hint="Mend the fields that are listed.", errors=[field]
        ) from None


@router.get("/vpgs", dependencies=_READ, summary="List groups")
async def list_vpgs(
    unit: Unit, asked: Asked, filters: Annotated[list[ColumnElement[bool]], Depends(vpg_filters)]
) -> Page[VpgOutput]:
    """The tenant's groups, filtered and sorted, a page at a time. Removed ones only if asked."""
    wanted = shown_vpgs(unit.session.tenant_id).where(*filters)
    rows, following = await list_rows(unit, Vpg, asked, wanted)
    return Page(items=[show_vpg(row, unit.now) for row in rows], next_cursor=following)


@router.post(
    "/vpgs", dependencies=_WRITE, status_code=status.HTTP_201_CREATED, summary="Make a group"
)
async def create_vpg(unit: Unit, wanted: VpgInput, response: Response) -> VpgOutput:
    """A new group, with its machines if they are named: their hosts begin at once."""
    return await _create(unit, wanted, response)


@router.get("/vpgs/{vpg_id}", dependencies=_READ, summary="Get a group")
async def get_vpg(unit: Unit, vpg_id: str, response: Response) -> VpgOutput:
    """One group: what is wanted of it, and what is known of it now."""
    known = await find_shown(unit, vpg_id)
    put_etag(response, known[0].version)
    return show_vpg(known, unit.now)


@router.put("/vpgs/{vpg_id}", dependencies=_WRITE, summary="Replace a group's settings")
async def replace_vpg(
    unit: Unit, vpg_id: str, wanted: VpgChange, request: Request, response: Response
) -> VpgOutput:
    """All settings at once; If-Match says which version is meant. What would destroy history or
    move the journal answers `plan_required`.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    check_etag(request, vpg.version)
    await service.replace_vpg(unit, vpg, wanted)
    return await _show(unit, vpg, response)


@router.put(
    "/vpgs/by-name/{vpg_name}",
    dependencies=_WRITE,
    summary="Make or replace a group by its name",
    responses={status.HTTP_201_CREATED: {"model": VpgOutput, "description": "It was made."}},
)
async def put_vpg_by_name(
    unit: Unit,
    vpg_name: Annotated[str, Path(max_length=80)],
    wanted: VpgWhole,
    request: Request,
    response: Response,
) -> VpgOutput:
    """The whole group at once, for configuration kept as files: makes it, or with If-Match changes
    the one that is there. Machines come in; going out is planned.
    """
    vpg = await service.find_by_name(unit, vpg_name)
    if vpg is None:
        if "if-match" in request.headers:
            raise not_found()
        response.status_code = status.HTTP_201_CREATED
        return await _create(unit, _named(wanted, vpg_name), response)
    check_etag(request, vpg.version)
    await service.replace_whole(unit, vpg, wanted)
    return await _show(unit, vpg, response)


@router.get("/vpgs/{vpg_id}/machines", dependencies=_READ, summary="List a group's machines")
async def list_vpg_machines(unit: Unit, vpg_id: str) -> MemberList:
    """All machines of the group with their disks, and where they are."""
    vpg = await service.get_vpg(unit, vpg_id)
    return MemberList(items=await show_members(unit.session, vpg.id))


@router.post("/vpgs/{vpg_id}/machines", dependencies=_WRITE, summary="Add a machine to a group")
async def add_vpg_machine(
    unit: Unit, vpg_id: str, wanted: MemberInput, response: Response
) -> MemberList:
    """A machine comes in, or more disks of one; its host begins at once. Repeats change nothing.
    Taking one out is planned: see `:plan`.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    await service.add_machines(unit, vpg, [wanted])
    put_etag(response, vpg.version)
    return MemberList(items=await show_members(unit.session, vpg.id))


@router.post("/vpgs/{vpg_id}:pause", dependencies=_WRITE, summary="Pause a group")
async def pause_vpg(unit: Unit, vpg_id: str, response: Response) -> VpgOutput:
    """Stop sending; never delayed. What is stored stays, and the RPO grows. Repeats change
    nothing.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    await service.pause_vpg(unit, vpg)
    return await _show(unit, vpg, response)


@router.post("/vpgs/{vpg_id}:resume", dependencies=_WRITE, summary="Resume a group")
async def resume_vpg(unit: Unit, vpg_id: str, response: Response) -> VpgOutput:
    """Go on sending: first what was written meanwhile. Repeats change nothing."""
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    await service.resume_vpg(unit, vpg)
    return await _show(unit, vpg, response)


@router.post(
    "/vpgs/{vpg_id}:force-sync",
    dependencies=_WRITE,
    status_code=_ACCEPTED,
    summary="Force a sync of a group",
)
async def force_sync_vpg(unit: Unit, vpg_id: str, wanted: ForceSyncInput) -> OperationOutput:
    """Read disks again and bring over what differs. Checkpoints that are there stay good."""
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    return show_operation(await service.force_sync(unit, vpg, wanted))


@router.post(
    "/vpgs/{vpg_id}:delete",
    dependencies=_WRITE,
    status_code=_ACCEPTED,
    summary="End a group's protection",
)
async def delete_vpg(unit: Unit, vpg_id: str, request: Request) -> OperationOutput:
    """Its hosts stop; its journal stays and can be restored from. If-Match says which version is
    meant. Destroying the journal is another act: `:destroy-journal`.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    check_etag(request, vpg.version)
    return show_operation(await service.delete_vpg(unit, vpg))


@router.post(
    "/vpgs/{vpg_id}:plan",
    dependencies=_WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Plan a change of a group",
)
async def plan_vpg(unit: Unit, vpg_id: str, wanted: PlanInput) -> PlanOutput:
    """Every change that it would make, what would be lost, what cannot be undone. Nothing is done
    before `:apply`.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    return await planning.show_plan(unit, vpg, await planning.make_plan(unit, vpg, wanted))


@router.post(
    "/vpgs/{vpg_id}:apply",
    dependencies=_WRITE,
    status_code=_ACCEPTED,
    summary="Apply a plan",
)
async def apply_vpg_plan(
    unit: Unit, vpg_id: str, wanted: ApplyInput, request: Request
) -> OperationOutput:
    """Do what a plan says. One that is stale answers 409 `plan_stale` with a new plan as `plan`.
    What destroys history wants the name and a reason, and waits: cancel its operation to keep it.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    plan = await planning.get_plan(unit, vpg, wanted.plan_id)
    if planning.is_stale(unit, vpg, plan):
        again = await planning.make_plan(unit, vpg, PlanInput(**plan.change))
        shown = await planning.show_plan(unit, vpg, again)
        # Not raised: the new plan is kept.
        return _stale(request, shown)  # type: ignore[return-value]
    return show_operation(await planning.apply_plan(unit, vpg, plan, wanted))


def _stale(request: Request, plan: PlanOutput) -> JSONResponse:
    problem = Problem("plan_stale", hint="Read the new plan and apply that one.")
    body = {**problem.body(request.state.request_id), "plan": plan.model_dump(mode="json")}
    return JSONResponse(body, problem.kind.status, media_type=MEDIA_TYPE)


@router.post(
    "/vpgs/{vpg_id}:destroy-journal",
    dependencies=[requires(Privilege.JOURNALS_DESTROY)],
    status_code=_ACCEPTED,
    summary="Destroy a removed group's journal",
)
async def destroy_vpg_journal(unit: Unit, vpg_id: str, wanted: ConfirmInput) -> OperationOutput:
    """For good, and not at once: it wants the group's name and a reason, waits as long as the
    tenant's plan says, and can be cancelled until then.
    """
    vpg = await service.get_vpg(unit, vpg_id, lock=True)
    return show_operation(await planning.destroy_journal(unit, vpg, wanted))
