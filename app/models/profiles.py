"""Service profiles."""

from __future__ import annotations

from typing import Any

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped

from app.models.base import Base, Resource


class ServiceProfile(Resource, Base):
    """Settings with a name, from which groups are made."""

    __tablename__ = "service_profiles"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    description: Mapped[str]
    settings: Mapped[dict[str, Any]]
