"""Server-sent events: a tenant's events as they happen, going on from any place that is kept."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select

from app.database.sessions import Database, TenantSession
from app.events.hub import EventHub, head_of
from app.events.schemas import EventOutput
from app.identity.coverage import event_coverage
from app.identity.scopes import WHOLE, Reach
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models import Event

_BATCH = 200
#: A comment so often: proxies close what is silent.
_ALIVE_SECONDS = 15.0
#: The credential behind a stream is looked at again so often.
_CHECK_SECONDS = 20.0


@dataclass(frozen=True)
class Reading:
    """Whose events, after which place, of which kinds, for how long, over what."""

    tenant_id: UUID
    after: int
    topics: tuple[str, ...]
    seconds: float
    reach: Reach = WHOLE


async def check_kept(session: TenantSession, after: int) -> None:
    """Problem `cursor_too_old`, naming the oldest place, where events after `after` are gone."""
    wanted = select(func.min(Event.place)).where(Event.tenant_id == session.tenant_id)
    oldest: int | None = (await session.orm.execute(wanted)).scalar_one()
    if oldest is not None and after + 1 < int(oldest):
        raise Problem(
            "cursor_too_old",
            f"The oldest event that is kept has place {oldest}.",
            hint=f"Read the objects themselves, then go on with after={oldest - 1}.",
        )


async def read_events(
    session: TenantSession, after: int, limit: int, reach: Reach = WHOLE
) -> Sequence[Event]:
    """Events within a reach after a place, in order."""
    wanted = select(Event).where(Event.tenant_id == session.tenant_id, Event.place > after)
    if not reach.is_whole:
        wanted = wanted.where(await event_coverage(session, reach))
    found = await session.orm.scalars(wanted.order_by(Event.place).limit(limit))
    return found.all()


def show_event(row: Event) -> EventOutput:
    """As the API shows it."""
    return EventOutput(
        place=row.place,
        id=show(Kind.EVENT, row.id),
        at=row.at,
        kind=row.kind,
        subject=row.subject,
        actor=row.actor,
        data=row.data,
    )


def as_message(event: EventOutput) -> str:
    """One message of the stream; its id is the cursor to go on from."""
    document = json.dumps(event.model_dump(mode="json"), separators=(",", ":"))
    return f"id: {event.place}\nevent: {event.kind}\ndata: {document}\n\n"


async def stream_events(
    database: Database,
    hub: EventHub,
    reading: Reading,
    is_still_allowed: Callable[[], Awaitable[bool]],
) -> AsyncIterator[str]:
    """The messages. Ends after the asked time, when the service stops, or with its credential."""
    place, checked = reading.after, time.monotonic()
    ends = checked + reading.seconds
    with hub.watching(reading.tenant_id):
        yield ": connected\n\n"
        while not hub.closing.is_set() and time.monotonic() < ends:
            if time.monotonic() - checked >= _CHECK_SECONDS:
                if not await is_still_allowed():
                    return
                checked = time.monotonic()
            patience = min(_ALIVE_SECONDS, max(0.0, ends - time.monotonic()))
            if not await hub.wait_beyond(reading.tenant_id, place, patience):
                yield ": alive\n\n"
                continue
            async with database.tenant(reading.tenant_id) as session:
                head = await head_of(session)
                # What lies before a batch's end and is of no wanted topic must not be read again.
                rows = await read_events(session, place, _BATCH, reading.reach)
            if len(rows) < _BATCH:
                place = max(place, head)  # what lies between is out of reach
            for row in rows:
                place = max(place, row.place)
                if not reading.topics or row.kind.split(".")[0] in reading.topics:
                    yield as_message(show_event(row))
