"""`/v1/operations`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Response

from app.http.etags import put_etag
from app.http.listing import Asked, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.models import Operation
from app.operations import service
from app.operations.schemas import OperationOutput
from app.operations.state import OperationState

router = tenant_router("operations")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.OPERATIONS_READ)]
_WRITE = [requires(Privilege.OPERATIONS_WRITE)]


@router.get("/operations", dependencies=_READ, summary="List operations")
async def list_operations(
    unit: Unit,
    asked: Asked,
    state: Annotated[OperationState | None, Query()] = None,
    subject: Annotated[str | None, Query(max_length=80)] = None,
    kind: Annotated[str | None, Query(max_length=80)] = None,
) -> Page[OperationOutput]:
    """The tenant's operations, filtered and sorted, a page at a time."""
    wanted = {Operation.state: state, Operation.subject: subject, Operation.kind: kind}
    filters = [column == value for column, value in wanted.items() if value is not None]
    rows, following = await list_page(unit, Operation, asked, filters)
    return Page(items=[service.show_operation(row) for row in rows], next_cursor=following)


@router.get("/operations/{operation_id}", dependencies=_READ, summary="Get an operation")
async def get_operation(unit: Unit, operation_id: str, response: Response) -> OperationOutput:
    """One operation: how far it is, and how it came out."""
    operation = await service.get_operation(unit, operation_id)
    put_etag(response, operation.version)
    return service.show_operation(operation)


@router.post(
    "/operations/{operation_id}:cancel", dependencies=_WRITE, summary="Cancel an operation"
)
async def cancel_operation(unit: Unit, operation_id: str, response: Response) -> OperationOutput:
    """End what has not begun, ask what runs to stop and undo. Repeats change nothing."""
    operation = await service.get_operation(unit, operation_id, lock=True)
    await service.cancel_operation(unit, operation)
    put_etag(response, operation.version)
    return service.show_operation(operation)
