"""Entries of the provider's staff into tenants, and the provider's own log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import PROVIDER, protect_tenant_table

revision = "20261122_2250"
down_revision = "20261122_2240"

_INSTANT = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "provider_entries",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("provider_key_id", sa.Uuid, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_table(
        "provider_acts",
        sa.Column("place", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", _INSTANT, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("details", postgresql.JSONB, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
    )
    for statement in (
        *protect_tenant_table("provider_entries", verbs="SELECT, INSERT, UPDATE"),
        "ALTER TABLE provider_acts ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE provider_acts FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY provider_acts_of_provider ON provider_acts TO {PROVIDER} "
        "USING (true) WITH CHECK (true)",
        # Added to and read, never changed.
        f"GRANT SELECT, INSERT ON provider_acts TO {PROVIDER}",
    ):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("provider_acts")
    op.drop_table("provider_entries")
