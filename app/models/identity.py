"""Who may come in, and what was answered to requests that may be repeated."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned


class UserState(StrEnum):
    """`invited` until the invitation was accepted."""

    INVITED = "invited"
    ACTIVE = "active"
    DISABLED = "disabled"


class User(Resource, Base):
    """A local account. The one-time code's secret is sealed; of an invitation only the fingerprint
    is kept.
    """

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    display_name: Mapped[str]
    role: Mapped[str]
    state: Mapped[str]
    password_hash: Mapped[str | None]
    totp_secret: Mapped[bytes | None]
    totp_step: Mapped[int] = mapped_column(BigInteger, default=0, doc="The newest step used.")
    failures: Mapped[int] = mapped_column(default=0, doc="Wrong logins since the last right one.")
    locked_until: Mapped[datetime | None]
    invitation: Mapped[bytes | None]
    invitation_expires_at: Mapped[datetime | None]


class UserSession(Resource, Base):
    """A person who is logged in."""

    __tablename__ = "user_sessions"

    user_id: Mapped[UUID]
    fingerprint: Mapped[bytes]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class ApiKey(Resource, Base):
    """A machine's credential; of its secret only the fingerprint is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    role: Mapped[str]
    fingerprint: Mapped[bytes]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class ProviderKey(Base):
    """A credential of the provider's staff and tools."""

    __tablename__ = "provider_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    fingerprint: Mapped[bytes]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class ProviderEntry(Resource, Base):
    """The provider's staff in a tenant's scope, for a while."""

    __tablename__ = "provider_entries"

    provider_key_id: Mapped[UUID]
    reason: Mapped[str]
    fingerprint: Mapped[bytes]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class ProviderAct(Base):
    """An entry of the provider's own log. It is added to, never changed."""

    __tablename__ = "provider_acts"

    place: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, Any]]
    address: Mapped[str]
    request_id: Mapped[str]


class IdempotencyRecord(TenantOwned, Base):
    """The answer to a request with an Idempotency-Key, for its repeats."""

    __tablename__ = "idempotency_records"

    principal_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[bytes | None]
    created_at: Mapped[datetime]
