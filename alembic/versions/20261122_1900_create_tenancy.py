"""Tenants, who may come in, sites, events and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import PROVIDER, protect_tenant_table

revision = "20261122_1900"
down_revision = None

_INSTANT = sa.TIMESTAMP(timezone=True)
_TABLES = {
    "users": "SELECT, INSERT, UPDATE, DELETE",
    "api_keys": "SELECT, INSERT, UPDATE",
    "sites": "SELECT, INSERT, UPDATE, DELETE",
    "tenant_ledgers": "SELECT, INSERT, UPDATE",
    "events": "SELECT, INSERT",
    "audit_entries": "SELECT, INSERT",
    "idempotency_records": "SELECT, INSERT, UPDATE",
}


def _of_tenant(*keys: sa.Column[object]) -> list[sa.SchemaItem]:
    names = [column.name for column in keys]
    return [
        sa.Column("tenant_id", sa.Uuid, nullable=False),
        *keys,
        sa.PrimaryKeyConstraint("tenant_id", *names),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
    ]


def _resource(table: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        table,
        *_of_tenant(sa.Column("id", sa.Uuid, nullable=False)),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        *columns,
        sa.UniqueConstraint("tenant_id", "name"),
    )


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("plan", postgresql.JSONB, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "provider_keys",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("revoked_at", _INSTANT),
    )


def _create_resources() -> None:
    _resource(
        "users",
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("totp_secret", sa.LargeBinary),
        sa.Column("is_enabled", sa.Boolean, nullable=False),
    )
    _resource(
        "api_keys",
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _INSTANT),
        sa.Column("last_used_at", _INSTANT),
        sa.Column("revoked_at", _INSTANT),
    )
    _resource(
        "sites",
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("territory", sa.Text, nullable=False),
    )


def _create_ledgers() -> None:
    op.create_table(
        "tenant_ledgers",
        *_of_tenant(),
        sa.Column("event_place", sa.BigInteger, nullable=False),
        sa.Column("audit_place", sa.BigInteger, nullable=False),
        sa.Column("audit_hash", sa.LargeBinary, nullable=False),
    )
    texts = ("kind", "subject", "actor")
    op.create_table(
        "events",
        *_of_tenant(sa.Column("place", sa.BigInteger, nullable=False)),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("at", _INSTANT, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("data", postgresql.JSONB, nullable=False),
    )
    texts = ("actor", "action", "subject", "outcome", "address", "request_id")
    op.create_table(
        "audit_entries",
        *_of_tenant(sa.Column("place", sa.BigInteger, nullable=False)),
        sa.Column("at", _INSTANT, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("details", postgresql.JSONB, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "idempotency_records",
        *_of_tenant(
            sa.Column("principal_id", sa.Uuid, nullable=False),
            sa.Column("key", sa.Text, nullable=False),
        ),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", postgresql.JSONB),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created_at", _INSTANT, nullable=False),
    )


def upgrade() -> None:
    _create_tenants()
    _create_resources()
    _create_ledgers()
    statements = protect_tenant_table("tenants", column="id", verbs="SELECT, UPDATE")
    statements += [
        # The provider's staff see and make tenants; what is in them they do not see.
        f"CREATE POLICY tenants_of_provider ON tenants TO {PROVIDER} "
        "USING (true) WITH CHECK (true)",
        f"GRANT SELECT, INSERT, UPDATE ON tenants TO {PROVIDER}",
        f"GRANT SELECT, INSERT, UPDATE ON provider_keys TO {PROVIDER}",
    ]
    for table, verbs in _TABLES.items():
        statements += protect_tenant_table(table, verbs=verbs)
    for statement in statements:
        op.execute(statement)


def downgrade() -> None:
    for table in (*_TABLES, "provider_keys", "tenants"):
        op.drop_table(table)
