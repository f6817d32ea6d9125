"""Usage, read from what the hourly job entered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select

from app.database.sessions import ProviderSession, TenantSession
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models import UsageHour
from app.models.tenants import PROVIDER_ID
from app.usage.schemas import TenantUsageOutput

#: A month and a day, by the hour.
SPAN_MAX = timedelta(days=32)
SPAN_DEFAULT = timedelta(days=1)

Span = tuple[datetime, datetime]


def span_of(since: datetime | None, until: datetime | None, now: datetime) -> Span:
    """The stretch that is asked for: a day up to now if nothing is said; Problem `bad_request`."""
    end = (until or now).astimezone(UTC)
    begin = (since or end - SPAN_DEFAULT).astimezone(UTC)
    if not timedelta(0) < end - begin <= SPAN_MAX:
        raise Problem(
            "bad_request",
            "Usage is read over more than nothing and at most 32 days.",
            hint="Ask for one month after the other.",
        )
    return begin, end


async def hours_of(session: TenantSession, span: Span) -> Sequence[UsageHour]:
    """The tenant's hours, the oldest first."""
    found = await session.orm.scalars(
        select(UsageHour)
        .where(
            UsageHour.tenant_id == session.tenant_id,
            UsageHour.hour >= span[0],
            UsageHour.hour < span[1],
        )
        .order_by(UsageHour.hour)
    )
    return found.all()


async def sums(session: ProviderSession, span: Span) -> list[TenantUsageOutput]:
    """Each tenant's sums, from figures alone."""
    tenant = UsageHour.tenant_id
    found = await session.orm.execute(
        select(
            tenant,
            func.count().label("hours"),
            func.sum(UsageHour.machines).label("machine_hours"),
            func.sum(UsageHour.protected_bytes).label("protected_byte_hours"),
            func.max(UsageHour.protected_bytes).label("protected_bytes_max"),
            func.sum(UsageHour.retained_bytes).label("retained_byte_hours"),
            func.max(UsageHour.retained_bytes).label("retained_bytes_max"),
        )
        .where(tenant != PROVIDER_ID, UsageHour.hour >= span[0], UsageHour.hour < span[1])
        .group_by(tenant)
        .order_by(tenant)
    )
    return [
        TenantUsageOutput(
            tenant_id=show(Kind.TENANT, row.tenant_id),
            hours=row.hours,
            machine_hours=int(row.machine_hours),
            protected_byte_hours=int(row.protected_byte_hours),
            protected_bytes_max=row.protected_bytes_max,
            retained_byte_hours=int(row.retained_byte_hours),
            retained_bytes_max=row.retained_bytes_max,
        )
        for row in found
    ]
