"""Jobs, and what tenants used."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, TenantOwned


class Job(TenantOwned, Base):
    """Something to do again and again, by who holds the lease; the fence tells holders apart."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("tenant_id", "kind", "subject"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[UUID] = mapped_column(doc="A group, or the tenant itself.")
    due_at: Mapped[datetime]
    period_seconds: Mapped[int]
    sent_at: Mapped[datetime | None] = mapped_column(doc="When the broker last heard of it.")
    lease_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    failures: Mapped[int] = mapped_column(default=0, doc="In a row.")
    error_code: Mapped[str | None] = mapped_column(doc="Of the last failure, until a success.")
    done_at: Mapped[datetime | None]


class UsageHour(TenantOwned, Base):
    """What a tenant had protected in an hour."""

    __tablename__ = "usage_hours"

    hour: Mapped[datetime] = mapped_column(primary_key=True)
    vpgs: Mapped[int]
    machines: Mapped[int]
    protected_bytes: Mapped[int] = mapped_column(BigInteger)
    retained_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
