"""Checkpoints: packed by ten minutes, and rows for those that somebody named or that failed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource, TenantOwned, refers_to


class CheckpointPack(TenantOwned, Base):
    """A group's automatic checkpoints of ten minutes. The journal is their truth."""

    __tablename__ = "checkpoint_packs"
    __table_args__ = (refers_to("vpgs", "vpg_id"),)

    vpg_id: Mapped[UUID] = mapped_column(primary_key=True)
    begins_at: Mapped[datetime] = mapped_column(primary_key=True)
    count: Mapped[int]
    complete: Mapped[int]
    first_complete_at: Mapped[datetime | None]
    last_complete_at: Mapped[datetime | None]
    response_us_max: Mapped[int]
    hold_us_max: Mapped[int]
    skew_us_max: Mapped[int]
    packed: Mapped[bytes]


class Checkpoint(Resource, Base):
    """A checkpoint that is tagged, pinned, application-consistent, or that failed."""

    __tablename__ = "checkpoints"
    __table_args__ = (refers_to("vpgs", "vpg_id"),)

    vpg_id: Mapped[UUID]
    kind: Mapped[str]
    state: Mapped[str]
    tag: Mapped[str | None]
    expected_at: Mapped[datetime]
    taken_at: Mapped[datetime | None]
    positions: Mapped[dict[str, Any]] = mapped_column(doc="Host's id as users see it to sequence.")
    response_us: Mapped[int | None]
    hold_us: Mapped[int | None]
    skew_us: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
    in_pack: Mapped[bool] = mapped_column(doc="An automatic one that somebody pinned.")
    is_pinned: Mapped[bool]
    pin_reason: Mapped[str | None]
    operation_id: Mapped[UUID | None]
