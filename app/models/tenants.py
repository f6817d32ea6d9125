"""Tenants."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base

#: The provider's own scope: its sites, pools and hosts are rows like a tenant's, with a manager and
#: an authority of their own. Nobody logs in there, and it protects nothing.
PROVIDER_ID = UUID(int=1)
#: How a request locks its tenant's row, FOR NO KEY UPDATE. What it entered before, as its
#: Idempotency-Key, holds a share of that row's key: FOR UPDATE would have two such requests wait
#: for each other, until the database ends one.
TENANT_LOCK = {"key_share": True}


class TenantState(StrEnum):
    """`creating` until its first administrator's credential was made."""

    CREATING = "creating"
    ACTIVE = "active"
    SUSPENDED = "suspended"


class Tenant(Base):
    """A customer organisation. Its own row is all that a tenant's session sees of this table."""

    __tablename__ = "tenants"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    plan: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)
