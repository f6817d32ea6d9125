"""`/v1/provider/tenants`, and `/v1/tenant`: the caller's own."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, status

from app.http.listing import Cursor, Limit
from app.http.routing import provider_router, requires, tenant_router
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT, read_cursor, write_cursor
from app.models import Tenant
from app.tenants import service
from app.tenants.schemas import Plan, TenantCreated, TenantInput, TenantOutput, TenantPage

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
    return TenantCreated(**_show(tenant).model_dump(), token=token.text)
