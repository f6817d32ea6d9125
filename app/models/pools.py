"""The provider's pools, which tenant may use which, and which tenant is placed on which host."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, refers_to


class Pool(Resource, Base):
    """Hosts of the provider at one site that tenants see as one. In the provider's own scope."""

    __tablename__ = "pools"
    __table_args__ = (refers_to("sites", "site_id"), UniqueConstraint("tenant_id", "name"))

    name: Mapped[str]
    description: Mapped[str]
    site_id: Mapped[UUID]


class PoolGrant(Resource, Base):
    """The tenant may use a pool."""

    __tablename__ = "pool_grants"
    __table_args__ = (refers_to("sites", "site_id"), UniqueConstraint("tenant_id", "pool_id"))

    pool_id: Mapped[UUID]
    site_id: Mapped[UUID] = mapped_column(doc="The tenant's own site that stands for the pool.")
    machines_max: Mapped[int] = mapped_column(doc="So many of its machines are protected there.")
    hosts: Mapped[list[str] | None] = mapped_column(
        JSONB, doc="The hosts of the pool that it may use; None: all."
    )


class Placement(Resource, Base):
    """The tenant on one of the provider's hosts."""

    __tablename__ = "placements"
    __table_args__ = (
        refers_to("hosts", "host_id"),
        Index(
            "uq_placements_host",
            "tenant_id",
            "owner_host_id",
            unique=True,
            postgresql_where=text("state <> 'withdrawn'"),
        ),
    )

    pool_id: Mapped[UUID]
    owner_host_id: Mapped[UUID] = mapped_column(doc="The host, in the provider's own scope.")
    host_id: Mapped[UUID | None] = mapped_column(doc="The tenant's process there, once it joined.")
    state: Mapped[str]
    failure: Mapped[dict[str, Any] | None] = mapped_column(doc="Why the host did not do it.")
    withdrawn_at: Mapped[datetime | None]


class RightsPlan(Resource, Base):
    """What a change of the tenant's rights would do, worked out before it is done."""

    __tablename__ = "rights_plans"

    kind: Mapped[str]
    subject: Mapped[UUID]
    subject_version: Mapped[int] = mapped_column(doc="The version that it read.")
    change: Mapped[dict[str, Any]]
    effects: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    expires_at: Mapped[datetime]
    applied_at: Mapped[datetime | None]
