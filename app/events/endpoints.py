"""`/v1/events`, `/v1/audit`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy import select

from app.events.audit import verify_audit
from app.events.schemas import (
    AuditEntryOutput,
    AuditPage,
    AuditVerification,
    EventOutput,
    EventPage,
)
from app.http.listing import Limit
from app.http.routing import requires, tenant_router
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import AuditEntry, Event

router = tenant_router("events")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
After = Annotated[int, Query(ge=0, le=2**62, description="Only what comes after this place.")]


@router.get("/events", dependencies=[requires(Privilege.EVENTS_READ)], summary="Read events")
async def list_events(unit: Unit, after: After = 0, limit: Limit = LIMIT_DEFAULT) -> EventPage:
    """Events in order. Going on from `after` misses none and repeats none."""
    found = await unit.session.orm.scalars(
        select(Event)
        .where(Event.tenant_id == unit.session.tenant_id, Event.place > after)
        .order_by(Event.place)
        .limit(limit)
    )
    rows = found.all()
    items = [
        EventOutput(
            place=row.place,
            id=show(Kind.EVENT, row.id),
            at=row.at,
            kind=row.kind,
            subject=row.subject,
            actor=row.actor,
            data=row.data,
        )
        for row in rows
    ]
    return EventPage(items=items, after=rows[-1].place if rows else after)


@router.get("/audit", dependencies=[requires(Privilege.AUDIT_READ)], summary="Read the audit log")
async def list_audit(unit: Unit, after: After = 0, limit: Limit = LIMIT_DEFAULT) -> AuditPage:
    """Who did what, when, from where: in order, each entry chained to the one before."""
    found = await unit.session.orm.scalars(
        select(AuditEntry)
        .where(AuditEntry.tenant_id == unit.session.tenant_id, AuditEntry.place > after)
        .order_by(AuditEntry.place)
        .limit(limit)
    )
    rows = found.all()
    return AuditPage(items=[_show(row) for row in rows], after=rows[-1].place if rows else after)


@router.get(
    "/audit:verify", dependencies=[requires(Privilege.AUDIT_READ)], summary="Verify the audit log"
)
async def verify(unit: Unit) -> AuditVerification:
    """Work out every hash of the log anew, from its first entry to the ledger's head."""
    return await verify_audit(unit.session)


def _show(entry: AuditEntry) -> AuditEntryOutput:
    return AuditEntryOutput(
        place=entry.place,
        at=entry.at,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        outcome=entry.outcome,
        details=entry.details,
        address=entry.address,
        request_id=entry.request_id,
        previous_hash=entry.previous_hash.hex(),
        hash=entry.hash.hex(),
    )
