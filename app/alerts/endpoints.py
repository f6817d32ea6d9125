"""`/v1/alerts`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Response
from sqlalchemy import ColumnElement

from app.alerts import service
from app.alerts.schemas import AlertOutput, Level
from app.http.etags import put_etag
from app.http.listing import Asked, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.models import Alert

router = tenant_router("alerts")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.ALERTS_READ)]
_WRITE = [requires(Privilege.ALERTS_WRITE)]


def _show(alert: Alert) -> AlertOutput:
    return AlertOutput(
        id=show(Kind.ALERT, alert.id),
        code=alert.code,
        level=Level(alert.level),
        subject=alert.subject,
        message=alert.message,
        data=alert.data,
        raised_at=alert.created_at,
        acknowledged_at=alert.acknowledged_at,
        acknowledged_by=alert.acknowledged_by,
        cleared_at=alert.cleared_at,
    )


async def _filters(
    level: Annotated[Level | None, Query()] = None,
    code: Annotated[str | None, Query(max_length=80)] = None,
    subject: Annotated[str | None, Query(max_length=80)] = None,
    is_open: Annotated[bool | None, Query(description="Null: cleared ones too.")] = None,
) -> list[ColumnElement[bool]]:
    wanted = {Alert.level: level, Alert.code: code, Alert.subject: subject}
    filters = [column == value for column, value in wanted.items() if value is not None]
    if is_open is not None:
        filters.append(Alert.cleared_at.is_(None) if is_open else Alert.cleared_at.is_not(None))
    return filters


@router.get("/alerts", dependencies=_READ, summary="List alerts")
async def list_alerts(
    unit: Unit, asked: Asked, filters: Annotated[list[ColumnElement[bool]], Depends(_filters)]
) -> Page[AlertOutput]:
    """What needs or needed somebody, filtered and sorted, a page at a time."""
    rows, following = await list_page(unit, Alert, asked, filters)
    return Page(items=[_show(row) for row in rows], next_cursor=following)


@router.get("/alerts/{alert_id}", dependencies=_READ, summary="Get an alert")
async def get_alert(unit: Unit, alert_id: str, response: Response) -> AlertOutput:
    """One alert."""
    alert = await service.get_alert(unit, alert_id)
    put_etag(response, alert.version)
    return _show(alert)


@router.post("/alerts/{alert_id}:acknowledge", dependencies=_WRITE, summary="Acknowledge an alert")
async def acknowledge_alert(unit: Unit, alert_id: str, response: Response) -> AlertOutput:
    """Say that somebody knows; it stays open until its cause is over. Repeats change nothing."""
    alert = await service.get_alert(unit, alert_id, lock=True)
    await service.acknowledge_alert(unit, alert)
    put_etag(response, alert.version)
    return _show(alert)
