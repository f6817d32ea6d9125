"""Answers to the provider's staff, kept for repeats of their requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import PROVIDER

revision = "20261130_1010"
down_revision = "20261130_0930"

_TABLE = "provider_idempotency_records"
_INSTANT = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        _TABLE,
        sa.Column("principal_id", sa.Uuid, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", postgresql.JSONB),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("principal_id", "key"),
    )
    for statement in (
        f"ALTER TABLE {_TABLE} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {_TABLE} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {_TABLE}_of_provider ON {_TABLE} TO {PROVIDER} "
        "USING (true) WITH CHECK (true)",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {_TABLE} TO {PROVIDER}",
    ):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table(_TABLE)
