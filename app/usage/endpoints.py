"""`/v1/usage`, and `/v1/provider/usage`: what bills are made from."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from pydantic import AwareDatetime

from app.http.routing import provider_router, requires, tenant_router
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.usage import service
from app.usage.schemas import TenantsUsageOutput, UsageHourOutput, UsageOutput

router = tenant_router("tenant")
provider = provider_router("provider")
Since = Annotated[AwareDatetime | None, Query(description="From here on; a day before `until`.")]
Until = Annotated[AwareDatetime | None, Query(description="Up to here; now.")]


@router.get("/usage", dependencies=[requires(Privilege.TENANT_READ)], summary="Read usage")
async def read_usage(
    unit: Annotated[TenantUnit, Depends(tenant_unit)], since: Since = None, until: Until = None
) -> UsageOutput:
    """What the tenant had protected, hour by hour, at most 32 days at once."""
    unit.require_at()
    span = service.span_of(since, until, unit.now)
    rows = await service.hours_of(unit.session, span)
    return UsageOutput(
        items=[
            UsageHourOutput(
                hour=row.hour,
                vpgs=row.vpgs,
                machines=row.machines,
                protected_bytes=row.protected_bytes,
                retained_bytes=row.retained_bytes,
            )
            for row in rows
        ]
    )


@provider.get(
    "/usage",
    dependencies=[requires(Privilege.PROVIDER_TENANTS)],
    summary="Read all tenants' usage",
)
async def read_tenants_usage(
    unit: Annotated[ProviderUnit, Depends(provider_unit)],
    since: Since = None,
    until: Until = None,
) -> TenantsUsageOutput:
    """Each tenant's sums over a stretch of time: figures, and nothing of what is in a tenant."""
    span = service.span_of(since, until, unit.now)
    return TenantsUsageOutput(items=await service.sums(unit.session, span))
