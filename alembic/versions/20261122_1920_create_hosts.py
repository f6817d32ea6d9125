"""Hosts, join tokens, and each tenant's authority."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.database.roles import protect_tenant_table

revision = "20261122_1920"
down_revision = "20261122_1900"

_INSTANT = sa.TIMESTAMP(timezone=True)
_TABLES = ("hosts", "join_tokens", "tenant_authorities")


def _resource(table: str, *columns: sa.SchemaItem) -> None:
    op.create_table(
        table,
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )


def upgrade() -> None:
    op.create_table(
        "tenant_authorities",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    _resource(
        "join_tokens",
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("used_at", _INSTANT),
        sa.Column("revoked_at", _INSTANT),
    )
    _resource(
        "hosts",
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("joined_by", sa.Uuid, nullable=False),
        sa.Column("key_fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("previous_key_fingerprint", sa.LargeBinary),
        sa.Column("certificate_expires_at", _INSTANT, nullable=False),
        sa.Column("revoked_at", _INSTANT),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    for table in _TABLES:
        for statement in protect_tenant_table(table, verbs="SELECT, INSERT, UPDATE"):
            op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
