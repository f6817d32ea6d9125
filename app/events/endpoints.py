"""`/v1/events`, `/v1/audit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from app.events.audit import verify_audit
from app.events.hub import head_of
from app.events.schemas import (
    AuditEntryOutput,
    AuditPage,
    AuditVerification,
    EventPage,
)
from app.events.stream import Reading, check_kept, read_events, show_event, stream_events
from app.http.listing import Limit
from app.http.routing import may_still, requires, tenant_router
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.paging import LIMIT_DEFAULT
from app.kit.problems import Problem
from app.models import AuditEntry

router = tenant_router("events")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
STREAM_SECONDS_MAX = 3600
Topics = Annotated[
    Sequence[str],
    Query(max_length=20, description="Only these: the first word of a kind, such as `vpgs`."),
]
Seconds = Annotated[int, Query(ge=0, le=STREAM_SECONDS_MAX, description="When it ends.")]
After = Annotated[int, Query(ge=0, le=2**62, description="Only what comes after this place.")]


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


@router.get("/events", dependencies=[requires(Privilege.EVENTS_READ)], summary="Read events")
async def list_events(unit: Unit, after: After = 0, limit: Limit = LIMIT_DEFAULT) -> EventPage:
    """Events in order. Going on from `after` misses none and repeats none."""
    reach = unit.principal.reach(unit.privilege)
    rows = await read_events(unit.session, after, limit, reach)
    if after and (not rows or rows[0].place != after + 1):
        await check_kept(unit.session, after)
    return EventPage(
        items=[show_event(row) for row in rows], after=rows[-1].place if rows else after
    )


@router.get(
    "/events:stream",
    dependencies=[requires(Privilege.EVENTS_READ)],
    response_class=EventStream,
    summary="Follow events",
)
async def follow_events(
    unit: Unit,
    request: Request,
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    topic: Topics = (),
    seconds: Seconds = STREAM_SECONDS_MAX,
) -> EventStream:
    """Server-sent events: what happened after a place, then what happens.

    The place is the header `Last-Event-ID`, else `after`, else now. The stream ends after
    `seconds`; a client goes on from its last id and misses nothing.
    """
    place = _last_event_id(request.headers.get("last-event-id"), after)
    if place is None:
        place = await head_of(unit.session)
    await check_kept(unit.session, place)
    request.app.state.hub.check_room(unit.session.tenant_id)
    reach = unit.principal.reach(unit.privilege)
    reading = Reading(unit.session.tenant_id, place, tuple(topic), seconds, reach)
    tools = unit.tools

    async def is_still_allowed() -> bool:
        return await may_still(request, tools, Privilege.EVENTS_READ, reach)

    messages = stream_events(tools.database, request.app.state.hub, reading, is_still_allowed)
    return EventStream(messages, headers={"cache-control": "no-store"})


def _last_event_id(header: str | None, after: int | None) -> int | None:
    if header is None:
        return after
    if not (header.isascii() and header.isdigit() and len(header) <= 19):
        raise Problem("bad_request", "Last-Event-ID is the id of an event of this stream.")
    return int(header)


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
