"""Data services managers: leases, who manages whose hosts, commands, what is known of hosts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import PROVIDER, SYSTEM, protect_tenant_table

revision = "20261122_2220"
down_revision = "20261122_2210"

#: Ids, states and times of every tenant's work.
_OF_SYSTEM = ("leases", "assignments", "commands", "appliance_health")
_INSTANT = sa.TIMESTAMP(timezone=True)


def _create_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("site_id", sa.Uuid, nullable=False),
        sa.Column("process", sa.Uuid),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("changed_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "site_id"),
    )
    op.create_index("ix_assignments_process", "assignments", ["process"])
    op.create_index("ix_assignments_changed_at", "assignments", ["changed_at"])


def _create_commands() -> None:
    op.create_table(
        "commands",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("site_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Uuid, nullable=False),
        sa.Column("operation_id", sa.Uuid),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("done_at", _INSTANT),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )
    op.create_index(
        "ix_commands_waiting",
        "commands",
        ["created_at"],
        postgresql_where=sa.text("done_at IS NULL"),
    )


def _create_statuses() -> None:
    op.create_table(
        "host_statuses",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("host_id", sa.Uuid, nullable=False),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("tap", sa.Text, nullable=False),
        sa.Column("assignment_version", sa.BigInteger, nullable=False),
        sa.Column("seen_at", _INSTANT, nullable=False),
        sa.Column("changed_at", _INSTANT, nullable=False),
        sa.Column("facts", postgresql.JSONB, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "host_id"),
        sa.ForeignKeyConstraint(["tenant_id", "host_id"], ["hosts.tenant_id", "hosts.id"]),
    )
    op.create_table(
        "appliance_health",
        sa.Column("appliance", sa.Uuid, primary_key=True),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("capacity_class", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
    )


def upgrade() -> None:
    _create_leases()
    _create_commands()
    _create_statuses()
    for table in ("join_tokens", "hosts"):
        op.add_column(table, sa.Column("site_id", sa.Uuid))
        op.create_foreign_key(
            f"fk_{table}_site_id", table, "sites", ["tenant_id", "site_id"], ["tenant_id", "id"]
        )
    op.create_index(
        "ix_hosts_revoked_at",
        "hosts",
        ["revoked_at"],
        postgresql_where=sa.text("revoked_at IS NOT NULL"),
    )
    statements = [
        *protect_tenant_table("commands", verbs="SELECT, INSERT"),
        *protect_tenant_table("host_statuses", verbs="SELECT, INSERT, UPDATE"),
        f"GRANT DELETE ON leases TO {SYSTEM}",
        f"CREATE POLICY appliance_health_of_provider ON appliance_health FOR SELECT TO {PROVIDER} "
        "USING (true)",
        f"GRANT SELECT ON appliance_health TO {PROVIDER}",
        # Who was shut out is found without a tenant's scope: ids, states and times alone.
        f"CREATE POLICY hosts_of_system ON hosts FOR SELECT TO {SYSTEM} USING (true)",
        f"GRANT SELECT (tenant_id, id, state, revoked_at) ON hosts TO {SYSTEM}",
        f"CREATE POLICY tenants_of_system ON tenants FOR SELECT TO {SYSTEM} USING (true)",
        f"GRANT SELECT (id, state) ON tenants TO {SYSTEM}",
    ]
    for table in _OF_SYSTEM:
        statements += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY {table}_of_system ON {table} TO {SYSTEM} "
            "USING (true) WITH CHECK (true)",
            f"GRANT SELECT, INSERT, UPDATE ON {table} TO {SYSTEM}",
        ]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP POLICY tenants_of_system ON tenants")
    op.execute("DROP POLICY hosts_of_system ON hosts")
    for table, columns in {
        "hosts": "tenant_id, id, state, revoked_at",
        "tenants": "id, state",
    }.items():
        op.execute(f"REVOKE SELECT ({columns}) ON {table} FROM {SYSTEM}")  # noqa: S608 - ours
    op.drop_index("ix_hosts_revoked_at", "hosts")
    for table in ("hosts", "join_tokens"):
        op.drop_constraint(f"fk_{table}_site_id", table)
        op.drop_column(table, "site_id")
    for table in ("appliance_health", "host_statuses", "commands", "assignments", "leases"):
        op.drop_table(table)
