"""Machines and disks, as hosts report them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned, refers_to


class Machine(Resource, Base):
    """A virtual machine that a host has, or had."""

    __tablename__ = "machines"
    __table_args__ = (
        refers_to("hosts", "host_id"),
        UniqueConstraint("tenant_id", "host_id", "name"),
    )

    host_id: Mapped[UUID]
    name: Mapped[str]
    uuid: Mapped[str | None] = mapped_column(doc="The hypervisor's own, if it told one.")
    labels: Mapped[dict[str, Any]]
    is_present: Mapped[bool] = mapped_column(doc="In the newest inventory of its host.")
    seen_at: Mapped[datetime]


class Disk(Resource, Base):
    """A virtual disk of a machine."""

    __tablename__ = "disks"
    __table_args__ = (
        refers_to("machines", "machine_id"),
        UniqueConstraint("tenant_id", "machine_id", "name"),
    )

    machine_id: Mapped[UUID]
    name: Mapped[str]
    source: Mapped[dict[str, Any]] = mapped_column(doc="Where the host finds it.")
    bytes: Mapped[int] = mapped_column(BigInteger)
    is_present: Mapped[bool]


class HostInventory(TenantOwned, Base):
    """The newest inventory that a host reported."""

    __tablename__ = "host_inventories"
    __table_args__ = (refers_to("hosts", "host_id"),)

    host_id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[str]
    reported_at: Mapped[datetime]
