"""Proof that nobody changed, removed or added an entry of the audit log."""

from __future__ import annotations

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.events.ledger import entry_hash
from app.events.schemas import AuditVerification
from app.models import AuditEntry, TenantLedger

_STEP = 500


async def verify_audit(session: TenantSession) -> AuditVerification:
    """Follow the chain from the first entry; it must end at the ledger's head."""
    found = await session.orm.scalars(
        select(TenantLedger).where(TenantLedger.tenant_id == session.tenant_id)
    )
    ledger = found.one()
    place, before = 0, bytes(32)
    while True:
        rows = await _entries(session, place)
        for entry in rows:
            follows = entry.place == place + 1 and entry.previous_hash == before
            if not follows or entry_hash(entry) != entry.hash:
                return _verdict(ledger, place + 1)
            place, before = entry.place, entry.hash
        if not rows:
            is_whole = (place, before) == (ledger.audit_place, ledger.audit_hash)
            return _verdict(ledger, None if is_whole else place + 1)


async def _entries(session: TenantSession, after: int) -> list[AuditEntry]:
    found = await session.orm.scalars(
        select(AuditEntry)
        .where(AuditEntry.tenant_id == session.tenant_id, AuditEntry.place > after)
        .order_by(AuditEntry.place)
        .limit(_STEP)
    )
    return list(found)


def _verdict(ledger: TenantLedger, bad: int | None) -> AuditVerification:
    return AuditVerification(
        is_intact=bad is None,
        entries=ledger.audit_place,
        head=ledger.audit_hash.hex(),
        first_bad_place=bad,
    )
