"""Jobs: what is due, whose turn it is, what came of it; usage by the hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.database.roles import PROVIDER, SYSTEM, protect_tenant_table

revision = "20261122_2260"
down_revision = "20261122_2250"

_INSTANT = sa.TIMESTAMP(timezone=True)
#: What the system's role sees of tenants' tables to know what has to be done: ids and states.
_SEEN = {"vpgs": "tenant_id, id, lifecycle"}


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Uuid, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.Column("period_seconds", sa.Integer, nullable=False),
        sa.Column("sent_at", _INSTANT),
        sa.Column("lease_until", _INSTANT),
        sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("error_code", sa.Text),
        sa.Column("done_at", _INSTANT),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
        sa.UniqueConstraint("tenant_id", "kind", "subject"),
    )
    op.create_index("ix_jobs_due_at", "jobs", ["due_at"])
    op.create_table(
        "usage_hours",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("hour", _INSTANT, nullable=False),
        sa.Column("vpgs", sa.Integer, nullable=False),
        sa.Column("machines", sa.Integer, nullable=False),
        sa.Column("protected_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "hour"),
    )
    statements = [
        *protect_tenant_table("jobs", verbs="SELECT"),
        *protect_tenant_table("usage_hours", verbs="SELECT, INSERT, UPDATE"),
        f"CREATE POLICY jobs_of_system ON jobs TO {SYSTEM} USING (true) WITH CHECK (true)",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO {SYSTEM}",
        f"CREATE POLICY usage_hours_of_provider ON usage_hours FOR SELECT TO {PROVIDER} "
        "USING (true)",
        f"GRANT SELECT ON usage_hours TO {PROVIDER}",
        "GRANT DELETE ON events, idempotency_records TO holdfast_app",
    ]
    for table, columns in _SEEN.items():
        statements += [
            f"CREATE POLICY {table}_of_system ON {table} FOR SELECT TO {SYSTEM} USING (true)",
            f"GRANT SELECT ({columns}) ON {table} TO {SYSTEM}",
        ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    op.execute("REVOKE DELETE ON events, idempotency_records FROM holdfast_app")
    for table, columns in _SEEN.items():
        op.execute(f"REVOKE SELECT ({columns}) ON {table} FROM {SYSTEM}")  # noqa: S608 - ours
        op.execute(f"DROP POLICY {table}_of_system ON {table}")
    op.drop_table("usage_hours")
    op.drop_table("jobs")
