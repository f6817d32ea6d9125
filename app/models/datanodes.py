"""Data nodes, the stores of journals, and the number of what is told of each tenant."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, TenantOwned


class NodeState(StrEnum):
    """`joining` until its certificate was made; `draining` serves nobody; `revoked` is for good."""

    JOINING = "joining"
    ACTIVE = "active"
    DRAINING = "draining"
    REVOKED = "revoked"


class DataNode(Base):
    """A machine of the provider's that receives streams and serves restores."""

    __tablename__ = "data_nodes"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    territory: Mapped[str]
    doors: Mapped[list[str]] = mapped_column(JSONB, doc="HOST:PORT, as hosts reach it.")
    state: Mapped[str]
    agent_version: Mapped[str]
    join_fingerprint: Mapped[bytes | None]
    join_expires_at: Mapped[datetime | None]
    key_fingerprint: Mapped[bytes | None] = mapped_column(doc="SHA-256 of the newest public key.")
    previous_key_fingerprint: Mapped[bytes | None]
    certificate_expires_at: Mapped[datetime | None]
    seen_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class JournalStore(Base):
    """An object store for journals."""

    __tablename__ = "journal_stores"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    territory: Mapped[str]
    url: Mapped[str]
    wall: Mapped[str] = mapped_column(doc="What keeps tenants' credentials apart.")
    sealed_credential: Mapped[bytes | None] = mapped_column(doc="Of a shared one.")
    created_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)


class DataNodeAuthority(Base):
    """The one authority of data nodes and their doors; its key is sealed. Its only row is 1."""

    __tablename__ = "data_node_authorities"

    id: Mapped[int] = mapped_column(primary_key=True)
    certificate: Mapped[str]
    sealed_key: Mapped[bytes]
    created_at: Mapped[datetime]


class StoreCredential(TenantOwned, Base):
    """A tenant's own credential of a store, good for its prefix alone; sealed."""

    __tablename__ = "store_credentials"

    store_id: Mapped[UUID] = mapped_column(ForeignKey("journal_stores.id"), primary_key=True)
    sealed: Mapped[bytes]
    changed_at: Mapped[datetime]


class TenantRecordNumber(TenantOwned, Base):
    """The version of what data nodes are told of a tenant. Raised by triggers of the database."""

    __tablename__ = "tenant_records"

    version: Mapped[int] = mapped_column(BigInteger)
