"""`/v1/vpgs/{id}:restore`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, status

from app.http.routing import requires, tenant_router
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.operations.schemas import OperationOutput
from app.operations.service import show_operation
from app.restores import service
from app.restores.schemas import RestoreInput
from app.vpgs.service import get_vpg

router = tenant_router("restores")


@router.post(
    "/vpgs/{vpg_id}:restore",
    dependencies=[requires(Privilege.VPGS_RESTORE)],
    status_code=status.HTTP_202_ACCEPTED,
    summary="Restore a group's disks on a host",
)
async def restore_vpg(
    unit: Annotated[TenantUnit, Depends(tenant_unit)], vpg_id: str, wanted: RestoreInput
) -> OperationOutput:
    """A host gets a ticket for one moment and brings the disks into a folder, verified. What it
    brought already is kept over breaks; replication goes on untouched.
    """
    vpg = await get_vpg(unit, vpg_id)
    return show_operation(await service.restore_vpg(unit, vpg, wanted))
