"""Sites."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Resource


class Site(Resource, Base):
    """A place with hypervisors. Its territory decides whose data may come there."""

    __tablename__ = "sites"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str]
    description: Mapped[str]
    territory: Mapped[str]
    pool_id: Mapped[UUID | None] = mapped_column(doc="The provider's pool that it stands for.")
