"""Sites."""

from __future__ import annotations

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped

from app.models.base import Base, Resource


class Site(Resource, Base):
    """A place with hypervisors. Its territory decides whose data may come there."""

    __tablename__ = "sites"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    description: Mapped[str]
    territory: Mapped[str]
