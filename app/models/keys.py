"""Wrapped keys, and to whom they are sealed for a restore. Nothing here opens anything."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, TenantOwned


class GroupKeyRecord(TenantOwned, Base):
    """The key of a group of machines, under its tenant's key."""

    __tablename__ = "group_keys"

    vpg_id: Mapped[UUID] = mapped_column(primary_key=True)
    wrapped: Mapped[str | None] = mapped_column(doc="None once it was destroyed.")
    created_at: Mapped[datetime]
    destroyed_at: Mapped[datetime | None]


class RestoreDoor(TenantOwned, Base):
    """The newest certificate of the tenant's restore process at a data node."""

    __tablename__ = "restore_doors"

    node_id: Mapped[UUID] = mapped_column(primary_key=True)
    certificate: Mapped[str] = mapped_column(doc="PEM, with its authority's.")
    made_at: Mapped[datetime]
