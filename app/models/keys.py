"""Wrapped keys. Nothing here opens anything."""

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
