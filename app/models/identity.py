"""Who may come in, and what was answered to requests that may be repeated."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned, refers_to

#: How long a repeat of a request gets the first answer.
ANSWERS_KEPT = timedelta(days=2)


class UserState(StrEnum):
    """`invited` until the invitation was accepted."""

    INVITED = "invited"
    ACTIVE = "active"
    DISABLED = "disabled"


class User(Resource, Base):
    """An account: a local one, or (issuer, subject) of the tenant's issuer. The one-time code's
    secret is sealed; of an invitation only the fingerprint is kept.
    """

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        UniqueConstraint("tenant_id", "issuer", "subject"),
    )

    name: Mapped[str]
    display_name: Mapped[str]
    state: Mapped[str]
    password_hash: Mapped[str | None]
    totp_secret: Mapped[bytes | None]
    totp_step: Mapped[int] = mapped_column(BigInteger, default=0, doc="The newest step used.")
    failures: Mapped[int] = mapped_column(default=0, doc="Wrong logins since the last right one.")
    locked_until: Mapped[datetime | None]
    invitation: Mapped[bytes | None]
    invitation_expires_at: Mapped[datetime | None]
    issuer: Mapped[str | None] = mapped_column(doc="None: a local account.")
    subject: Mapped[str | None]


class UserSession(Resource, Base):
    """A person who is logged in."""

    __tablename__ = "user_sessions"

    user_id: Mapped[UUID]
    fingerprint: Mapped[bytes]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    issuer_version: Mapped[int | None] = mapped_column(
        doc="Of the issuer's settings through which the person came; None: locally."
    )
    authenticated_at: Mapped[datetime | None] = mapped_column(
        doc="When the person proved who they are, as the issuer says."
    )


class Issuer(TenantOwned, Base):
    """The OpenID Connect issuer that a tenant's people log in with; its secret is sealed."""

    __tablename__ = "issuers"
    __table_args__ = (
        refers_to("users", "break_glass_id"),
        CheckConstraint("enforced_at IS NULL OR break_glass_id IS NOT NULL", name="break_glass"),
    )

    created_at: Mapped[datetime]
    version: Mapped[int]
    url: Mapped[str]
    client_id: Mapped[str]
    client_secret: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(JSONB)
    groups_claim: Mapped[str]
    mappings: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    enforced_at: Mapped[datetime | None]
    break_glass_id: Mapped[UUID | None] = mapped_column(
        doc="The one local account that may log in while the issuer is enforced."
    )


class UsedLogin(TenantOwned, Base):
    """Something of a login that works once and was used; kept until it would not work anyway."""

    __tablename__ = "used_logins"

    fingerprint: Mapped[bytes] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime]


class ApiKey(Resource, Base):
    """A machine's credential; of its secret only the fingerprint is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    fingerprint: Mapped[bytes]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Grant(TenantOwned, Base):
    """A role of one person or one API key over one site, one group, or (neither) the tenant."""

    __tablename__ = "grants"
    __table_args__ = (
        refers_to("users", "user_id"),
        refers_to("api_keys", "api_key_id"),
        refers_to("sites", "site_id"),
        refers_to("vpgs", "vpg_id"),
        CheckConstraint("num_nonnulls(user_id, api_key_id) = 1", name="one_owner"),
        CheckConstraint("num_nonnulls(site_id, vpg_id) <= 1", name="one_scope"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID | None]
    api_key_id: Mapped[UUID | None]
    role: Mapped[str]
    site_id: Mapped[UUID | None]
    vpg_id: Mapped[UUID | None]


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


class KeptAnswer:
    """The answer to a request with an Idempotency-Key, for its repeats; none while it is sought."""

    principal_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[bytes | None]
    created_at: Mapped[datetime]


class IdempotencyRecord(TenantOwned, KeptAnswer, Base):
    """A kept answer to somebody of a tenant."""

    __tablename__ = "idempotency_records"


class ProviderIdempotencyRecord(KeptAnswer, Base):
    """A kept answer to the provider's staff."""

    __tablename__ = "provider_idempotency_records"
