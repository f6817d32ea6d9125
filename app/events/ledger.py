"""A transaction's events and audit entries, written as its last statements.

Both take their places from the tenant's ledger row, whose lock is held from here to the commit:
places have no gap and follow the order of commits, so a reader that goes on from a place misses
nothing. A sequence would lose events, because a later number may be committed first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.kit.ids import new_uuid
from app.models import AuditEntry, Event, TenantLedger


@dataclass(frozen=True)
class Happening:
    """Something that happened, for the event stream. `data` is JSON."""

    kind: str
    subject: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Act:
    """Something that somebody did, for the audit log. `details` is JSON."""

    action: str
    subject: str
    outcome: str = "done"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Circumstances:
    """Who acts, from where, in which request, when."""

    actor: str
    address: str
    request_id: str
    at: datetime


def entry_hash(entry: AuditEntry) -> bytes:
    """The hash that chains an entry to the one before: SHA-256 of its canonical JSON."""
    fields = {
        "tenant": str(entry.tenant_id),
        "place": entry.place,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "outcome": entry.outcome,
        "details": entry.details,
        "address": entry.address,
        "request_id": entry.request_id,
        "previous": entry.previous_hash.hex(),
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


async def write_ledger(
    session: TenantSession, happenings: list[Happening], acts: list[Act], by: Circumstances
) -> None:
    """Add them to the transaction. To be called last before the commit."""
    if not happenings and not acts:
        return
    await session.orm.flush()
    found = await session.orm.scalars(
        select(TenantLedger)
        .where(TenantLedger.tenant_id == session.tenant_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    ledger = found.one()
    for happening in happenings:
        ledger.event_place += 1
        session.orm.add(_event(session, ledger.event_place, happening, by))
    for act in acts:
        ledger.audit_place += 1
        entry = _entry(session, ledger, act, by)
        ledger.audit_hash = entry.hash
        session.orm.add(entry)
    await session.orm.flush()


def _event(session: TenantSession, place: int, happening: Happening, by: Circumstances) -> Event:
    return Event(
        tenant_id=session.tenant_id,
        place=place,
        id=new_uuid(by.at),
        at=by.at,
        kind=happening.kind,
        subject=happening.subject,
        actor=by.actor,
        data=happening.data,
    )


def _entry(session: TenantSession, ledger: TenantLedger, act: Act, by: Circumstances) -> AuditEntry:
    entry = AuditEntry(
        tenant_id=session.tenant_id,
        place=ledger.audit_place,
        at=by.at,
        actor=by.actor,
        action=act.action,
        subject=act.subject,
        outcome=act.outcome,
        details=act.details,
        address=by.address,
        request_id=by.request_id,
        previous_hash=ledger.audit_hash,
    )
    entry.hash = entry_hash(entry)
    return entry
