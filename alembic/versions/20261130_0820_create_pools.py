"""The provider's pools, tenants' rights to them, and placements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import APP, PROVIDER, TENANT_OF_TRANSACTION, protect_tenant_table

revision = "20261130_0820"
down_revision = "20261122_2260"

_INSTANT = sa.TIMESTAMP(timezone=True)
_ALL = "SELECT, INSERT, UPDATE, DELETE"
_TABLES = {
    "pools": _ALL,
    "pool_grants": _ALL,
    "placements": "SELECT, INSERT, UPDATE",
    "rights_plans": "SELECT, INSERT, UPDATE",
}
_ADDED = {
    "sites": ("pool_id",),
    "join_tokens": ("pool_id", "placement_id"),
    "hosts": ("pool_id", "placement_id"),
}


def _resource(table: str, *columns: sa.SchemaItem) -> None:
    op.create_table(
        table,
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("tenant_id", "id"),
    )


def _refers(column: str, table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"])


def _create_pools() -> None:
    _resource(
        "pools",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("site_id", sa.Uuid, nullable=False),
        _refers("site_id", "sites"),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    _resource(
        "pool_grants",
        sa.Column("pool_id", sa.Uuid, nullable=False),
        sa.Column("site_id", sa.Uuid, nullable=False),
        sa.Column("machines_max", sa.Integer, nullable=False),
        sa.Column("hosts", postgresql.JSONB),
        _refers("site_id", "sites"),
        sa.UniqueConstraint("tenant_id", "pool_id"),
    )


def _create_placements() -> None:
    _resource(
        "placements",
        sa.Column("pool_id", sa.Uuid, nullable=False),
        sa.Column("owner_host_id", sa.Uuid, nullable=False),
        sa.Column("host_id", sa.Uuid),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("failure", postgresql.JSONB),
        sa.Column("withdrawn_at", _INSTANT),
        _refers("host_id", "hosts"),
    )
    op.create_index(
        "uq_placements_host",
        "placements",
        ["tenant_id", "owner_host_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'withdrawn'"),
    )
    op.create_index("ix_placements_owner_host_id", "placements", ["owner_host_id"])
    _resource(
        "rights_plans",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Uuid, nullable=False),
        sa.Column("subject_version", sa.Integer, nullable=False),
        sa.Column("change", postgresql.JSONB, nullable=False),
        sa.Column("effects", postgresql.JSONB, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("applied_at", _INSTANT),
    )


def upgrade() -> None:
    for table, columns in _ADDED.items():
        for column in columns:
            op.add_column(table, sa.Column(column, sa.Uuid))
    _create_pools()
    _create_placements()
    statements = [
        # Which tenant is on which of its hosts the provider knows: it placed them.
        f"CREATE POLICY placements_of_provider ON placements FOR SELECT TO {PROVIDER} USING (true)",
        f"GRANT SELECT ON placements TO {PROVIDER}",
        # Where journals may be is asked in a tenant's own scope: names and territories alone.
        f"CREATE POLICY journal_stores_of_tenant ON journal_stores FOR SELECT TO {APP} "
        f"USING ({TENANT_OF_TRANSACTION} IS NOT NULL)",
        f"GRANT SELECT (id, name, territory) ON journal_stores TO {APP}",
    ]
    for table, verbs in _TABLES.items():
        statements = [*protect_tenant_table(table, verbs=verbs), *statements]
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP POLICY journal_stores_of_tenant ON journal_stores")
    op.execute(f"REVOKE SELECT (id, name, territory) ON journal_stores FROM {APP}")  # noqa: S608 - ours
    for table in reversed(_TABLES):
        op.drop_table(table)
    for table, columns in _ADDED.items():
        for column in columns:
            op.drop_column(table, column)
