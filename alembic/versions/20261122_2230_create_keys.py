"""Wrapped keys of groups, and the certificates to which they are sealed for restores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.database.roles import protect_tenant_table

revision = "20261122_2230"
down_revision = "20261122_2220"

_TABLES = ("group_keys", "restore_doors")
_INSTANT = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "group_keys",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        # It outlives its group: what was made of a key stays known.
        sa.Column("vpg_id", sa.Uuid, nullable=False),
        sa.Column("wrapped", sa.Text),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("destroyed_at", _INSTANT),
        sa.PrimaryKeyConstraint("tenant_id", "vpg_id"),
        sa.CheckConstraint("(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name="state"),
    )
    op.create_table(
        "restore_doors",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("node_id", sa.Uuid, nullable=False),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("made_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "node_id"),
    )
    for table in _TABLES:
        for statement in protect_tenant_table(table, verbs="SELECT, INSERT, UPDATE"):
            op.execute(statement)


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
