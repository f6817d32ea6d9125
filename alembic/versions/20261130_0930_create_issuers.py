"""Tenants' own issuers: their accounts, sessions that came through them, what was used once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import protect_tenant_table

revision = "20261130_0930"
down_revision = "20261130_0900"

_INSTANT = sa.TIMESTAMP(timezone=True)
_VERBS = {"issuers": "SELECT, INSERT, UPDATE, DELETE", "used_logins": "SELECT, INSERT, DELETE"}


def _tenant() -> sa.Column[object]:
    return sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "issuers",
        _tenant(),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("client_id", sa.Text, nullable=False),
        sa.Column("client_secret", sa.LargeBinary, nullable=False),
        sa.Column("scopes", postgresql.JSONB, nullable=False),
        sa.Column("groups_claim", sa.Text, nullable=False),
        sa.Column("mappings", postgresql.JSONB, nullable=False),
        sa.Column("enforced_at", _INSTANT),
        sa.Column("break_glass_id", sa.Uuid),
        sa.PrimaryKeyConstraint("tenant_id"),
        sa.ForeignKeyConstraint(["tenant_id", "break_glass_id"], ["users.tenant_id", "users.id"]),
        sa.CheckConstraint(
            "enforced_at IS NULL OR break_glass_id IS NOT NULL",
            name=op.f("ck_issuers_break_glass"),
        ),
    )
    op.create_table(
        "used_logins",
        _tenant(),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "fingerprint"),
    )
    op.add_column("users", sa.Column("issuer", sa.Text))
    op.add_column("users", sa.Column("subject", sa.Text))
    op.create_unique_constraint(
        "uq_users_tenant_id_issuer_subject", "users", ["tenant_id", "issuer", "subject"]
    )
    op.add_column("user_sessions", sa.Column("issuer_version", sa.Integer))
    op.add_column("user_sessions", sa.Column("authenticated_at", _INSTANT))
    for table, verbs in _VERBS.items():
        for statement in protect_tenant_table(table, verbs=verbs):
            op.execute(statement)


def downgrade() -> None:
    for table in _VERBS:
        op.drop_table(table)
    op.execute("UPDATE user_sessions SET ended_at = now() WHERE issuer_version IS NOT NULL")
    for column in ("authenticated_at", "issuer_version"):
        op.drop_column("user_sessions", column)
    # Without their issuer nobody may come in by these accounts.
    op.execute("UPDATE users SET state = 'disabled' WHERE issuer IS NOT NULL")
    op.drop_constraint("uq_users_tenant_id_issuer_subject", "users")
    for column in ("subject", "issuer"):
        op.drop_column("users", column)
