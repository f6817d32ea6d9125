"""What happened: events for software, the audit log for people who must prove it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, TenantOwned


class TenantLedger(TenantOwned, Base):
    """A tenant's newest places: locked by each transaction that adds to its events or its audit."""

    __tablename__ = "tenant_ledgers"

    event_place: Mapped[int] = mapped_column(BigInteger, default=0)
    audit_place: Mapped[int] = mapped_column(BigInteger, default=0)
    audit_hash: Mapped[bytes] = mapped_column(default=bytes(32))


class Event(TenantOwned, Base):
    """One event. Places have no gaps and follow the order of commits."""

    __tablename__ = "events"

    place: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[UUID]
    at: Mapped[datetime]
    kind: Mapped[str]
    subject: Mapped[str]
    actor: Mapped[str]
    data: Mapped[dict[str, Any]]


class AuditEntry(TenantOwned, Base):
    """One entry of the audit log, chained by hash to the one before."""

    __tablename__ = "audit_entries"

    place: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    outcome: Mapped[str]
    details: Mapped[dict[str, Any]]
    address: Mapped[str]
    request_id: Mapped[str]
    previous_hash: Mapped[bytes]
    hash: Mapped[bytes]
