"""Alerts of a tenant. Raising what is raised and clearing what is not changes nothing, so that
whoever watches may say the same again and again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import Kind, new_uuid, show
from app.models import Alert


@dataclass(frozen=True)
class Raised:
    """An alert as it is raised. `subject` is an id as users see it."""

    code: str
    level: str
    subject: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)


async def raise_alerts(
    session: TenantSession, raised: Sequence[Raised], now: datetime
) -> list[Happening]:
    """Open these alerts; events for those that were not open. One query."""
    if not raised:
        return []
    rows = [
        {
            "tenant_id": session.tenant_id,
            "id": new_uuid(now),
            "created_at": now,
            "version": 1,
            **vars(one),
        }
        for one in raised
    ]
    found = await session.orm.execute(
        insert(Alert)
        .values(rows)
        .on_conflict_do_nothing(
            index_elements=["tenant_id", "code", "subject"],
            index_where=text("cleared_at IS NULL"),
        )
        .returning(Alert.code, Alert.level, Alert.subject, Alert.message)
    )
    return [
        Happening(
            "alerts.raised",
            row.subject,
            {"code": row.code, "level": row.level, "message": row.message},
        )
        for row in found
    ]


async def clear_alerts(
    session: TenantSession, cleared: Collection[tuple[str, str]], now: datetime
) -> list[Happening]:
    """Their causes, (code, subject), are over; events for those that were open. One query."""
    if not cleared:
        return []
    found = await session.orm.execute(
        update(Alert)
        .where(
            Alert.tenant_id == session.tenant_id,
            Alert.cleared_at.is_(None),
            tuple_(Alert.code, Alert.subject).in_(sorted(cleared)),
        )
        .values(cleared_at=now, version=Alert.version + 1)
        .returning(Alert.code, Alert.subject)
        .execution_options(synchronize_session=False)
    )
    return [Happening("alerts.cleared", row.subject, {"code": row.code}) for row in found]


async def open_alerts(session: TenantSession, codes: Collection[str]) -> set[tuple[str, str]]:
    """What of these codes is open, as (code, subject). For whoever starts watching."""
    found = await session.orm.execute(
        select(Alert.code, Alert.subject).where(
            Alert.tenant_id == session.tenant_id,
            Alert.cleared_at.is_(None),
            Alert.code.in_(sorted(codes)),
        )
    )
    return {(row.code, row.subject) for row in found}


async def get_alert(unit: TenantUnit, alert_id: str, *, lock: bool = False) -> Alert:
    """The tenant's alert; Problem `not_found` for every other id."""
    return await find(unit, Alert, Kind.ALERT, alert_id, lock=lock)


async def acknowledge_alert(unit: TenantUnit, alert: Alert) -> None:
    """Somebody knows. It stays open until its cause is over. Repeats change nothing."""
    if alert.acknowledged_at is None:
        alert.acknowledged_at, alert.acknowledged_by = unit.now, unit.principal.actor
        alert.version += 1
        unit.note("alerts.acknowledged", show(Kind.ALERT, alert.id), code=alert.code)
