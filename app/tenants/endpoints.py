"""`/v1/provider/tenants`, and `/v1/tenant`: the caller's own."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, status

from app.http.listing import Limit
from app.http.routing import provider_router, requires, tenant_router
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import Tenant
from app.tenants import service
from app.tenants.schemas import Plan, TenantCreated, TenantInput, TenantOutput, TenantPage

router = tenant_router("tenant")
provider = provider_router("provider")
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
    unit: Annotated[ProviderUnit, Depends(provider_unit)], limit: Limit = LIMIT_DEFAULT
) -> TenantPage:
    """Names, states and plans; nothing of what is in a tenant."""
    rows = await service.list_tenants(unit.session, limit)
    return TenantPage(items=[_show(row) for row in rows])


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
