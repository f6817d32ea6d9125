"""Groups: what is wanted of them, their members, what is known of them, plans of changes."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned, refers_to


class Vpg(Resource, Base):
    """A group: machines that are recovered together at one consistent moment."""

    __tablename__ = "vpgs"
    __table_args__ = (
        refers_to("service_profiles", "profile_id"),
        refers_to("sites", "protected_site_id"),
        refers_to("sites", "recovery_site_id"),
        Index(
            "uq_vpgs_name",
            "tenant_id",
            "name",
            unique=True,
            postgresql_where=text("lifecycle <> 'removed'"),
        ),
    )

    name: Mapped[str]
    description: Mapped[str]
    labels: Mapped[dict[str, Any]]
    lifecycle: Mapped[str]
    recovery: Mapped[str]
    settings: Mapped[dict[str, Any]] = mapped_column(doc="As app.vpgs.schemas.Settings has them.")
    profile_id: Mapped[UUID | None]
    protected_site_id: Mapped[UUID | None]
    recovery_site_id: Mapped[UUID | None]
    store: Mapped[str] = mapped_column(doc="The name of its journal store.")


class VpgStatus(TenantOwned, Base):
    """What is known of a group. Facts flow up into it; nobody's settings are in it."""

    __tablename__ = "vpg_statuses"
    __table_args__ = (refers_to("vpgs", "vpg_id"),)

    vpg_id: Mapped[UUID] = mapped_column(primary_key=True)
    sync: Mapped[str]
    link: Mapped[str]
    protected_since: Mapped[datetime | None] = mapped_column(doc="The first complete checkpoint.")
    recoverable_at: Mapped[datetime | None] = mapped_column(
        doc="The source's time at the newest complete checkpoint; None: never synced."
    )
    oldest_at: Mapped[datetime | None] = mapped_column(doc="The oldest complete checkpoint kept.")
    backlog_bytes: Mapped[int] = mapped_column(BigInteger)
    gap_reason: Mapped[str | None]
    retained_bytes: Mapped[int | None] = mapped_column(
        BigInteger, doc="What its journal takes in the store; None: never measured."
    )
    reported_at: Mapped[datetime | None]


class VpgDisk(TenantOwned, Base):
    """A disk of a group. A disk is in at most one."""

    __tablename__ = "vpg_disks"
    __table_args__ = (
        refers_to("disks", "disk_id"),
        refers_to("vpgs", "vpg_id"),
        refers_to("machines", "machine_id"),
        UniqueConstraint("tenant_id", "vpg_id", "name"),
    )

    disk_id: Mapped[UUID] = mapped_column(primary_key=True)
    vpg_id: Mapped[UUID]
    machine_id: Mapped[UUID]
    name: Mapped[str] = mapped_column(doc="Its name in the group's streams; never reused.")
    added_at: Mapped[datetime]


class HostAssignment(TenantOwned, Base):
    """The number of what a host is told to do: raised by each change of it."""

    __tablename__ = "host_assignments"
    __table_args__ = (refers_to("hosts", "host_id"),)

    host_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    held_version: Mapped[int] = mapped_column(BigInteger, doc="What the host says that it has.")
    changed_at: Mapped[datetime]


class VpgPlan(Resource, Base):
    """What a change of a group would do, worked out before it is done."""

    __tablename__ = "vpg_plans"
    __table_args__ = (refers_to("vpgs", "vpg_id"),)

    vpg_id: Mapped[UUID]
    vpg_version: Mapped[int] = mapped_column(doc="The version that it read.")
    change: Mapped[dict[str, Any]]
    effects: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    expires_at: Mapped[datetime]
    applied_at: Mapped[datetime | None]
