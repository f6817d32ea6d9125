"""What all tables share."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import TIMESTAMP, ForeignKey, ForeignKeyConstraint, LargeBinary, MetaData, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: Names of constraints are part of the schema: a migration has to be able to drop them.
_NAMES = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The base of every table."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        bytes: LargeBinary,
        str: Text,
    }


class TenantOwned:
    """A row of one tenant: the tenant is first in its key, and row-level security is forced."""

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)


class Resource(TenantOwned):
    """A tenant's object that the API serves: an id, when it was made, a version for ETags."""

    id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


def refers_to(table: str, column: str) -> ForeignKeyConstraint:
    """A reference to an object of the same tenant: it cannot be another's."""
    return ForeignKeyConstraint(["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"])


def key_of(tenant_id: UUID, object_id: UUID) -> dict[str, UUID]:
    """The primary key of a tenant's object, for `get`."""
    return {"tenant_id": tenant_id, "id": object_id}
