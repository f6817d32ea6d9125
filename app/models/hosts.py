"""Hosts, how they join, and the authority that signs them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned


class HostState(StrEnum):
    """`revoked` is for good: the machine joins anew as another host."""

    ACTIVE = "active"
    REVOKED = "revoked"


class TenantAuthority(TenantOwned, Base):
    """A tenant's intermediate; its key is sealed."""

    __tablename__ = "tenant_authorities"

    certificate: Mapped[str]
    sealed_key: Mapped[bytes]
    created_at: Mapped[datetime]


class JoinToken(Resource, Base):
    """A right to join one host, once, within minutes."""

    __tablename__ = "join_tokens"

    name: Mapped[str] = mapped_column(doc="The host's name.")
    site_id: Mapped[UUID | None] = mapped_column(doc="Where the host will be.")
    pool_id: Mapped[UUID | None] = mapped_column(doc="Of a provider's host.")
    placement_id: Mapped[UUID | None] = mapped_column(doc="For a placed tenant's process.")
    fingerprint: Mapped[bytes]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Host(Resource, Base):
    """A hypervisor machine of the tenant."""

    __tablename__ = "hosts"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    site_id: Mapped[UUID | None] = mapped_column(doc="Where it is: the site's manager commands it.")
    pool_id: Mapped[UUID | None] = mapped_column(doc="Of a provider's host.")
    placement_id: Mapped[UUID | None] = mapped_column(
        doc="The tenant's process on a provider's host. Its tenant is shown the pool, not this."
    )
    state: Mapped[str]
    agent_version: Mapped[str]
    joined_by: Mapped[UUID] = mapped_column(doc="The join token.")
    key_fingerprint: Mapped[bytes] = mapped_column(doc="SHA-256 of the newest public key.")
    previous_key_fingerprint: Mapped[bytes | None] = mapped_column(
        doc="Still renews: the answer to the last renewal may have been lost."
    )
    certificate_expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
