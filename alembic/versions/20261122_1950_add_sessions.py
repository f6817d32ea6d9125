"""People: invitations, one-time codes, locks against guessing, sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.database.roles import protect_tenant_table

revision = "20261122_1950"
down_revision = "20261122_1920"

_INSTANT = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.drop_column("users", "is_enabled")
    op.alter_column("users", "password_hash", nullable=True)
    for column in (
        sa.Column("state", sa.Text, nullable=False, server_default="active"),
        sa.Column("totp_step", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("locked_until", _INSTANT),
        sa.Column("invitation", sa.LargeBinary),
        sa.Column("invitation_expires_at", _INSTANT),
    ):
        op.add_column("users", column)
    op.create_table(
        "user_sessions",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("seen_at", _INSTANT, nullable=False),
        sa.Column("ended_at", _INSTANT),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["users.tenant_id", "users.id"], ondelete="CASCADE"
        ),
    )
    for statement in protect_tenant_table("user_sessions", verbs="SELECT, INSERT, UPDATE"):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("user_sessions")
    names = ("invitation_expires_at", "invitation", "locked_until", "failures", "totp_step")
    for name in (*names, "state"):
        op.drop_column("users", name)
    op.execute("DELETE FROM users WHERE password_hash IS NULL")
    op.alter_column("users", "password_hash", nullable=False)
    op.add_column(
        "users", sa.Column("is_enabled", sa.Boolean, nullable=False, server_default="true")
    )
