"""Jobs of a tenant that need the database alone."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.events.ledger import Circumstances, write_ledger
from app.models import Disk, Event, IdempotencyRecord, UsageHour, Vpg, VpgDisk
from app.models.identity import ANSWERS_KEPT
from app.vpgs.due import run_due
from app.vpgs.retained import watch_retained
from app.vpgs.state import Lifecycle

#: So long can be gone on from an event's place.
EVENTS_KEPT = timedelta(days=30)
_ROWS_MAX = 10_000


async def meter_usage(session: TenantSession, now: datetime) -> None:
    """Write down what the tenant protects in this hour; the hour's largest figures stand. Who is
    near the plan's limit of retained bytes is told.
    """
    mine = session.tenant_id
    groups = select(func.count()).where(
        Vpg.tenant_id == mine, Vpg.lifecycle.not_in((Lifecycle.DRAFT, Lifecycle.REMOVED))
    )
    disks = (
        select(func.count(VpgDisk.machine_id.distinct()), func.coalesce(func.sum(Disk.bytes), 0))
        .join(Disk, (Disk.tenant_id == VpgDisk.tenant_id) & (Disk.id == VpgDisk.disk_id))
        .where(VpgDisk.tenant_id == mine)
    )
    retained, told = await watch_retained(session, now)
    machines, bytes_ = (await session.orm.execute(disks)).one()
    found = {
        "vpgs": (await session.orm.execute(groups)).scalar_one(),
        "machines": machines,
        "protected_bytes": int(bytes_),
        "retained_bytes": retained,
    }
    hour = now.replace(minute=0, second=0, microsecond=0)
    row = insert(UsageHour).values(tenant_id=mine, hour=hour, **found)
    largest = {
        name: func.greatest(getattr(UsageHour, name), getattr(row.excluded, name)) for name in found
    }
    await session.orm.execute(
        row.on_conflict_do_update(index_elements=["tenant_id", "hour"], set_=largest)
    )
    await write_ledger(session, told, [], Circumstances("worker", "", "", now))


async def run_due_acts(session: TenantSession, now: datetime) -> None:
    """Do what waited before it destroys history, and whose time has come."""
    happenings = await run_due(session, now)
    await write_ledger(session, happenings, [], Circumstances("worker", "", "", now))


async def tidy_records(session: TenantSession, now: datetime) -> None:
    """Drop events and kept answers that are too old. Each event before a kept one goes as well, so
    that places have no gap.
    """
    mine = session.tenant_id
    old = select(func.max(Event.place)).where(Event.tenant_id == mine, Event.at < now - EVENTS_KEPT)
    newest = (await session.orm.execute(old)).scalar_one()
    if newest is not None:
        first = select(func.min(Event.place)).where(Event.tenant_id == mine)
        begin = (await session.orm.execute(first)).scalar_one()
        await session.orm.execute(
            delete(Event).where(
                Event.tenant_id == mine, Event.place <= min(newest, begin + _ROWS_MAX)
            )
        )
    await session.orm.execute(
        delete(IdempotencyRecord).where(
            IdempotencyRecord.tenant_id == mine,
            IdempotencyRecord.created_at < now - ANSWERS_KEPT,
        )
    )
