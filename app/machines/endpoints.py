"""`/v1/machines`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Response
from sqlalchemy import ColumnElement, exists

from app.http.etags import check_etag, put_etag
from app.http.labels import LabelQuery, label_filters
from app.http.listing import Asked, list_page
from app.http.lookup import parse_filter
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind
from app.machines import service
from app.machines.schemas import LabelsInput, MachineOutput
from app.models import Host, Machine, VpgDisk

router = tenant_router("machines")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.MACHINES_READ)]
_WRITE = [requires(Privilege.MACHINES_WRITE)]


async def _places(
    host_id: Annotated[str | None, Query(max_length=80)] = None,
    pool_id: Annotated[str | None, Query(max_length=80)] = None,
) -> list[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = []
    if host_id is not None:
        filters.append(Machine.host_id == parse_filter(Kind.HOST, host_id))
    if pool_id is not None:
        there = exists().where(
            Host.tenant_id == Machine.tenant_id,
            Host.id == Machine.host_id,
            Host.placement_id.is_not(None),
            Host.pool_id == parse_filter(Kind.POOL, pool_id),
        )
        filters.append(there)
    return filters


async def _filters(
    places: Annotated[list[ColumnElement[bool]], Depends(_places)],
    name: Annotated[str | None, Query(max_length=200)] = None,
    is_protected: Annotated[bool | None, Query()] = None,
    is_present: Annotated[bool | None, Query()] = None,
    label: LabelQuery = None,
) -> list[ColumnElement[bool]]:
    filters = [*places, *label_filters(Machine.labels, label)]
    if name is not None:
        filters.append(Machine.name == name)
    if is_present is not None:
        filters.append(Machine.is_present == is_present)
    if is_protected is not None:
        member = exists().where(
            VpgDisk.tenant_id == Machine.tenant_id, VpgDisk.machine_id == Machine.id
        )
        filters.append(member if is_protected else ~member)
    return filters


@router.get("/machines", dependencies=_READ, summary="List machines")
async def list_machines(
    unit: Unit, asked: Asked, filters: Annotated[list[ColumnElement[bool]], Depends(_filters)]
) -> Page[MachineOutput]:
    """What the tenant's hosts have, filtered and sorted, a page at a time."""
    rows, following = await list_page(unit, Machine, asked, filters)
    return Page(items=await service.show_machines(unit.session, rows), next_cursor=following)


@router.get("/machines/{machine_id}", dependencies=_READ, summary="Get a machine")
async def get_machine(unit: Unit, machine_id: str, response: Response) -> MachineOutput:
    """One machine with its disks, and which group protects each."""
    machine = await service.get_machine(unit, machine_id)
    put_etag(response, machine.version)
    return (await service.show_machines(unit.session, [machine]))[0]


@router.put("/machines/{machine_id}/labels", dependencies=_WRITE, summary="Label a machine")
async def label_machine(
    unit: Unit, machine_id: str, wanted: LabelsInput, request: Request, response: Response
) -> MachineOutput:
    """All labels at once; If-Match says which version is meant."""
    machine = await service.get_machine(unit, machine_id, lock=True)
    check_etag(request, machine.version)
    await service.label_machine(unit, machine, wanted)
    put_etag(response, machine.version)
    return (await service.show_machines(unit.session, [machine]))[0]
