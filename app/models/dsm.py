"""Data services managers: leases, who manages whose hosts, commands, what is known of hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, TenantOwned


class Lease(Base):
    """A process that is alive as long as it renews this row. Times are the database's."""

    __tablename__ = "leases"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(doc="HOST:PORT where other processes reach it.")
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class ManagerAssignment(Base):
    """Which process manages a tenant's hosts at a site. A new process raises the epoch."""

    __tablename__ = "assignments"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    site_id: Mapped[UUID] = mapped_column(primary_key=True)
    process: Mapped[UUID | None] = mapped_column(doc="A lease; None: nobody's.")
    epoch: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[datetime]


class Command(TenantOwned, Base):
    """Something that the manager of a site is to do: what it is about, in ids alone."""

    __tablename__ = "commands"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    site_id: Mapped[UUID]
    kind: Mapped[str]
    subject: Mapped[UUID]
    operation_id: Mapped[UUID | None]
    state: Mapped[str]
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class HostStatus(TenantOwned, Base):
    """What is known of a host. Written at a change, and at most once a minute without one."""

    __tablename__ = "host_statuses"

    host_id: Mapped[UUID] = mapped_column(primary_key=True)
    health: Mapped[str]
    reason: Mapped[str | None]
    tap: Mapped[str]
    assignment_version: Mapped[int] = mapped_column(BigInteger, doc="That the host holds.")
    seen_at: Mapped[datetime]
    changed_at: Mapped[datetime] = mapped_column(doc="When `health` became what it is.")
    facts: Mapped[dict[str, Any]] = mapped_column(doc="By group, as the last heartbeat had them.")


class ApplianceHealth(Base):
    """The newest health record of each host's agent, for whoever else depends on it."""

    __tablename__ = "appliance_health"

    appliance: Mapped[UUID] = mapped_column(primary_key=True)
    health: Mapped[str]
    capacity_class: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime]
