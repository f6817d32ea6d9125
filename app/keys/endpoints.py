"""`/v1/recovery-key`."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import Depends

from app.http.routing import requires, tenant_router
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.keys import service
from app.keys.schemas import RecoveryKeyInput, RecoveryKeyOutput
from app.kit.ids import Kind, show

router = tenant_router("keys")


@router.post(
    "/recovery-key:export",
    dependencies=[requires(Privilege.KEYS_EXPORT)],
    summary="Export the recovery key",
)
async def export_recovery_key(
    unit: Annotated[TenantUnit, Depends(tenant_unit)], wanted: RecoveryKeyInput
) -> RecoveryKeyOutput:
    """The key that, with the journal, brings everything back when this service is gone.

    It is sealed to the key in the request, so that this service never sees it. Every administrator
    is told.
    """
    sealed = await service.export_recovery_key(unit, wanted)
    tenant = show(Kind.TENANT, unit.session.tenant_id)
    return RecoveryKeyOutput(tenant_id=tenant, sealed=base64.b64encode(sealed).decode())
