"""Operations: the one kind of work that takes time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource


class Operation(Resource, Base):
    """Work that takes time, as the tenant sees it; its row is its truth."""

    __tablename__ = "operations"

    kind: Mapped[str]
    subject: Mapped[str] = mapped_column(doc="The id of what it is done to.")
    state: Mapped[str]
    progress: Mapped[float] = mapped_column(doc="0 to 1.")
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    input: Mapped[dict[str, Any]]
    outcome: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    is_cancellable: Mapped[bool]
    requested_by: Mapped[str]
    due_at: Mapped[datetime | None] = mapped_column(doc="Not before; None: at once.")
    started_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
