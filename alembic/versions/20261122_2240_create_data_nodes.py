"""Data nodes, journal stores, and the number of what a data node is told of each tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import (
    APP,
    PROVIDER,
    SYSTEM,
    TENANT_OF_TRANSACTION,
    protect_tenant_table,
)

revision = "20261122_2240"
down_revision = "20261122_2230"

_INSTANT = sa.TIMESTAMP(timezone=True)
_OF_PROVIDER = ("data_nodes", "journal_stores", "data_node_authorities")
_TABLES = (*_OF_PROVIDER, "store_credentials", "tenant_records")
#: What a tenant's record is made of: table, what of it counts, the column that names the tenant.
_SOURCES = {
    "tenant_authorities": ("INSERT", "tenant_id"),
    "hosts": ("INSERT OR UPDATE OF state", "tenant_id"),
    "vpgs": ("INSERT OR UPDATE OF lifecycle", "tenant_id"),
    "vpg_disks": ("INSERT", "tenant_id"),
    "store_credentials": ("INSERT OR UPDATE", "tenant_id"),
    "tenants": ("UPDATE OF state, plan", "id"),
}


def _named(table: str, *columns: sa.SchemaItem) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("territory", sa.Text, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        *columns,
    )


def _create_tables() -> None:
    _named(
        "data_nodes",
        sa.Column("doors", postgresql.JSONB, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("join_fingerprint", sa.LargeBinary),
        sa.Column("join_expires_at", _INSTANT),
        sa.Column("key_fingerprint", sa.LargeBinary),
        sa.Column("previous_key_fingerprint", sa.LargeBinary),
        sa.Column("certificate_expires_at", _INSTANT),
        sa.Column("seen_at", _INSTANT),
    )
    _named(
        "journal_stores",
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("wall", sa.Text, nullable=False),
        sa.Column("sealed_credential", sa.LargeBinary),
    )
    op.create_table(
        "data_node_authorities",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
    )
    op.create_table(
        "store_credentials",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("store_id", sa.Uuid, sa.ForeignKey("journal_stores.id"), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("changed_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "store_id"),
    )
    op.create_table(
        "tenant_records",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )


def _protect() -> list[str]:
    statements = []
    for table in _OF_PROVIDER:
        statements += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY {table}_of_provider ON {table} TO {PROVIDER} "
            "USING (true) WITH CHECK (true)",
            f"GRANT SELECT, INSERT, UPDATE ON {table} TO {PROVIDER}",
            # Managers push records to nodes; nothing of a tenant is in these tables.
            f"CREATE POLICY {table}_of_system ON {table} TO {SYSTEM} "
            "USING (true) WITH CHECK (true)",
            f"GRANT SELECT ON {table} TO {SYSTEM}",
        ]
    own = (
        "agent_version, key_fingerprint, previous_key_fingerprint, certificate_expires_at, seen_at"
    )
    return [
        *statements,
        f"GRANT UPDATE ({own}) ON data_nodes TO {SYSTEM}",
        # A tenant's hosts are told by which doors its streams go in.
        f"CREATE POLICY data_nodes_of_tenant ON data_nodes FOR SELECT TO {APP} "
        f"USING ({TENANT_OF_TRANSACTION} IS NOT NULL AND state = 'active')",
        f"GRANT SELECT (id, territory, doors, state) ON data_nodes TO {APP}",
        *protect_tenant_table("store_credentials", verbs="SELECT, INSERT, UPDATE"),
        *protect_tenant_table("tenant_records", verbs="SELECT, INSERT, UPDATE"),
        f"CREATE POLICY tenant_records_of_system ON tenant_records FOR SELECT TO {SYSTEM} "
        "USING (true)",
        f"GRANT SELECT ON tenant_records TO {SYSTEM}",
        # Where a tenant's data may be is part of its plan.
        f"GRANT SELECT (plan) ON tenants TO {SYSTEM}",
        f"CREATE POLICY tenant_records_of_provider ON tenant_records TO {PROVIDER} "
        "USING (true) WITH CHECK (true)",
        f"GRANT SELECT, INSERT, UPDATE ON tenant_records TO {PROVIDER}",
    ]


def _number() -> list[str]:
    """Whoever changes what a record is made of raises its number, in the same transaction."""
    statements = [
        """
        CREATE FUNCTION raise_tenant_record() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO tenant_records (tenant_id, version)
            VALUES ((to_jsonb(NEW) ->> TG_ARGV[0])::uuid, 1)
            ON CONFLICT (tenant_id) DO UPDATE SET version = tenant_records.version + 1;
            RETURN NULL;
        END $$
        """
    ]
    for table, (when, column) in _SOURCES.items():
        statements.append(
            f"CREATE TRIGGER {table}_raise_record AFTER {when} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION raise_tenant_record('{column}')"
        )
    return statements


def upgrade() -> None:
    _create_tables()
    for statement in [*_protect(), *_number()]:
        op.execute(statement)
    op.execute(
        "INSERT INTO tenant_records (tenant_id, version) "
        "SELECT tenant_id, 1 FROM tenant_authorities"
    )


def downgrade() -> None:
    for table in _SOURCES:
        op.execute(f"DROP TRIGGER {table}_raise_record ON {table}")
    op.execute("DROP FUNCTION raise_tenant_record()")
    op.execute(f"REVOKE SELECT (plan) ON tenants FROM {SYSTEM}")  # noqa: S608 - ours
    for table in ("tenant_records", "store_credentials", *_OF_PROVIDER):
        op.drop_table(table)
