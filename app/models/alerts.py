"""Alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource


class Alert(Resource, Base):
    """Something that needs somebody. Open until it is cleared; at most one open for each code and
    subject.
    """

    __tablename__ = "alerts"

    code: Mapped[str]
    level: Mapped[str]
    subject: Mapped[str] = mapped_column(doc="The id of what it is about.")
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None]
    cleared_at: Mapped[datetime | None]
