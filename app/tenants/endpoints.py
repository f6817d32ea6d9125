"""`/v1/provider/tenants`, and `/v1/tenant`: the caller's own."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Response, status

from app.http.etags import check_etag, put_etag
from app.http.listing import Cursor, Limit
from app.http.routing import provider_router, requires, tenant_router
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT, read_cursor, write_cursor
from app.models import Tenant
from app.tenants import service, terms
from app.tenants.schemas import (
    Plan,
    StandingInput,
    TenantCreated,
    TenantInput,
    TenantOutput,
    TenantPage,
)
from app.tenants.state import TenantEvent

router = tenant_router("tenant")
provider = provider_router("provider")
_LISTED = "provider:tenants"
_PROVIDER = [requires(Privilege.PROVIDER_TENANTS)]


def _show(tenant: Tenant) -> TenantOutput:
    return TenantOutput(
        id=show(Kind.TENANT, tenant.id),
        name=tenant.name,
        state=tenant.state,
        plan=Plan(**tenant.plan),
        created_at=tenant.created_at,
    )


@router.get("/tenant", dependencies=[requires(Privilege.TENANT_READ)], summary="Get the tenant")
async def get_tenant(unit: Annotated[TenantUnit, Depends(tenant_unit)]) -> TenantOutput:
    """The tenant that the caller belongs to, and its plan."""
    return _show(await unit.session.orm.get_one(Tenant, unit.session.tenant_id))


@provider.get("/tenants", dependencies=_PROVIDER, summary="List tenants")
async def list_tenants(
    unit: Annotated[ProviderUnit, Depends(provider_unit)],
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
) -> TenantPage:
    """Names, states and plans, a page at a time; nothing of what is in a tenant."""
    sealer = unit.tools.sealer
    after = None if cursor is None else UUID(read_cursor(sealer, _LISTED, cursor)[0])
    rows, last = await service.list_tenants(unit.session, limit, after)
    following = None if last is None else write_cursor(sealer, _LISTED, [str(last)])
    return TenantPage(items=[_show(row) for row in rows], next_cursor=following)


@provider.post(
    "/tenants",
    dependencies=_PROVIDER,
    status_code=status.HTTP_201_CREATED,
    summary="Make a tenant",
)
async def create_tenant(
    unit: Annotated[ProviderUnit, Depends(provider_unit)], wanted: TenantInput
) -> TenantCreated:
    """A new tenant, and the token of its first administrator: in this answer and nowhere else."""
    tenant = await service.create_tenant(unit.session, wanted, unit.now)
    token = await service.open_tenant(unit.tools, tenant, unit.circumstances)
    unit.shows_secret = show(Kind.TENANT, tenant.id)
    return TenantCreated(**_show(tenant).model_dump(), token=token.text)


@provider.get("/tenants/{tenant_id}", dependencies=_PROVIDER, summary="Get a tenant")
async def get_provider_tenant(
    unit: Annotated[ProviderUnit, Depends(provider_unit)], tenant_id: str, response: Response
) -> TenantOutput:
    """Its name, state and plan; nothing of what is in it."""
    tenant = await service.find_tenant(unit.session, tenant_id)
    put_etag(response, tenant.version)
    return _show(tenant)


@provider.put(
    "/tenants/{tenant_id}/plan", dependencies=_PROVIDER, summary="Replace a tenant's plan"
)
async def replace_plan(
    unit: Annotated[ProviderUnit, Depends(provider_unit)],
    tenant_id: str,
    wanted: Plan,
    request: Request,
    response: Response,
) -> TenantOutput:
    """All of it at once; If-Match says which version is meant. What the tenant has beyond a lower
    limit stays protected; only new things are refused. Territories are the policy's.
    """
    tenant = await terms.change_plan(
        unit, tenant_id, wanted, lambda version: check_etag(request, version)
    )
    put_etag(response, tenant.version)
    return _show(tenant)


@provider.post("/tenants/{tenant_id}:suspend", dependencies=_PROVIDER, summary="Suspend a tenant")
async def suspend_tenant(
    unit: Annotated[ProviderUnit, Depends(provider_unit)], tenant_id: str, wanted: StandingInput
) -> TenantOutput:
    """Nobody of it gets in, and its hosts get no commands. Replication goes on; nothing is deleted,
    and the bucket with the tenant's key restores as before.
    """
    return _show(await terms.move_tenant(unit, tenant_id, TenantEvent.SUSPEND, wanted.reason))


@provider.post("/tenants/{tenant_id}:resume", dependencies=_PROVIDER, summary="Let a tenant in")
async def resume_tenant(
    unit: Annotated[ProviderUnit, Depends(provider_unit)], tenant_id: str, wanted: StandingInput
) -> TenantOutput:
    """The end of a suspension: its people and hosts come in again by what they had."""
    return _show(await terms.move_tenant(unit, tenant_id, TenantEvent.RESUME, wanted.reason))
