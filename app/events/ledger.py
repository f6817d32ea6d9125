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

from sqlalchemy import Select, bindparam, select, text

from app.database.sessions import TenantSession
from app.kit.ids import new_uuid
from app.models import AuditEntry, TenantLedger


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


@dataclass(frozen=True)
class Lock:
    """How the ledger is locked. `statement`: LOCK, or that with what else goes along, and the
    `values` of the latter.
    """

    statement: Select[int, int, bytes]
    values: dict[str, Any] = field(default_factory=dict)


async def write_ledger(
    session: TenantSession,
    happenings: list[Happening],
    acts: list[Act],
    by: Circumstances,
    lock: Lock | None = None,
) -> None:
    """Add them to the transaction, in two statements. To be called last before the commit."""
    if not happenings and not acts and lock is None:
        return
    await session.orm.flush()
    lock = lock or Lock(LOCK)
    found = await session.orm.execute(
        lock.statement, {"ledger_of": session.tenant_id, **lock.values}
    )
    if not happenings and not acts:
        return
    event_place, audit_place, audit_hash = found.one()
    entries = _entries(session, acts, by, (audit_place, audit_hash))
    if entries:
        audit_place, audit_hash = entries[-1].place, entries[-1].hash
    heads = {
        "tenant_id": session.tenant_id,
        "event_place": event_place + len(happenings),
        "audit_place": audit_place,
        "audit_hash": audit_hash,
    }
    common = {"at": by.at, "actor": by.actor, "address": by.address, "request": by.request_id}
    columns = _event_columns(happenings, event_place, by) | _entry_columns(entries)
    await session.orm.execute(_WRITE, heads | common | columns)


LOCK = (
    select(TenantLedger.event_place, TenantLedger.audit_place, TenantLedger.audit_hash)
    .where(TenantLedger.tenant_id == bindparam("ledger_of"))
    .with_for_update()
)
#: The heads, the events and the entries at once, however many: a round trip for each would be most
#: of what a small change costs.
_WRITE = text(
    """
    WITH ledger AS (
        UPDATE tenant_ledgers
        SET event_place = :event_place, audit_place = :audit_place, audit_hash = :audit_hash
        WHERE tenant_id = :tenant_id
    ), happened AS (
        INSERT INTO events (tenant_id, place, id, at, kind, subject, actor, data)
        SELECT :tenant_id, place, id, :at, kind, subject, :actor, CAST(data AS jsonb)
        FROM unnest(
            CAST(:event_places AS bigint[]), CAST(:event_ids AS uuid[]),
            CAST(:event_kinds AS text[]), CAST(:event_subjects AS text[]),
            CAST(:event_data AS text[])
        ) AS given (place, id, kind, subject, data)
    )
    INSERT INTO audit_entries (
        tenant_id, place, at, actor, action, subject, outcome, details, address, request_id,
        previous_hash, hash
    )
    SELECT :tenant_id, place, :at, :actor, action, subject, outcome, CAST(details AS jsonb),
        :address, :request, previous_hash, hash
    FROM unnest(
        CAST(:entry_places AS bigint[]), CAST(:entry_actions AS text[]),
        CAST(:entry_subjects AS text[]), CAST(:entry_outcomes AS text[]),
        CAST(:entry_details AS text[]), CAST(:entry_previous AS bytea[]),
        CAST(:entry_hashes AS bytea[])
    ) AS given (place, action, subject, outcome, details, previous_hash, hash)
    """
)


def _event_columns(happenings: list[Happening], before: int, by: Circumstances) -> dict[str, Any]:
    return {
        "event_places": list(range(before + 1, before + 1 + len(happenings))),
        "event_ids": [new_uuid(by.at) for _ in happenings],
        "event_kinds": [one.kind for one in happenings],
        "event_subjects": [one.subject for one in happenings],
        "event_data": [json.dumps(one.data) for one in happenings],
    }


def _entry_columns(entries: list[AuditEntry]) -> dict[str, Any]:
    return {
        "entry_places": [one.place for one in entries],
        "entry_actions": [one.action for one in entries],
        "entry_subjects": [one.subject for one in entries],
        "entry_outcomes": [one.outcome for one in entries],
        "entry_details": [json.dumps(one.details) for one in entries],
        "entry_previous": [one.previous_hash for one in entries],
        "entry_hashes": [one.hash for one in entries],
    }


def _entries(
    session: TenantSession, acts: list[Act], by: Circumstances, head: tuple[int, bytes]
) -> list[AuditEntry]:
    """Each chained to the one before."""
    entries = []
    place, before = head
    for act in acts:
        place += 1
        entry = AuditEntry(
            tenant_id=session.tenant_id,
            place=place,
            at=by.at,
            actor=by.actor,
            action=act.action,
            subject=act.subject,
            outcome=act.outcome,
            details=act.details,
            address=by.address,
            request_id=by.request_id,
            previous_hash=before,
        )
        before = entry.hash = entry_hash(entry)
        entries.append(entry)
    return entries
