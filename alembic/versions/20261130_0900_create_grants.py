"""Roles over the tenant, a site or a group: several for one person or API key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.database.roles import protect_tenant_table

revision = "20261130_0900"
down_revision = "20261130_0820"

_OWNERS = {"users": "user_id", "api_keys": "api_key_id"}
#: Who may do most over the whole tenant; what was narrower cannot be said in one column.
_BACK = """
UPDATE {table} o SET role = g.role FROM (
    SELECT DISTINCT ON (tenant_id, {owner}) tenant_id, {owner}, role FROM grants
    WHERE {owner} IS NOT NULL AND site_id IS NULL AND vpg_id IS NULL
    ORDER BY tenant_id, {owner}, array_position(ARRAY['administrator', 'operator', 'viewer'], role)
) g WHERE g.tenant_id = o.tenant_id AND g.{owner} = o.id
"""
#: Whoever had only a part of the tenant must not get the whole: they are shut out.
_SHUT_OUT = (
    "UPDATE users SET state = 'disabled', role = 'viewer' WHERE role IS NULL",
    "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()), role = 'viewer' "
    "WHERE role IS NULL",
)


def _to(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"])


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid),
        sa.Column("api_key_id", sa.Uuid),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("site_id", sa.Uuid),
        sa.Column("vpg_id", sa.Uuid),
        sa.PrimaryKeyConstraint("tenant_id", "id"),
        _to("users", "user_id"),
        _to("api_keys", "api_key_id"),
        _to("sites", "site_id"),
        _to("vpgs", "vpg_id"),
        sa.CheckConstraint(
            "num_nonnulls(user_id, api_key_id) = 1", name=op.f("ck_grants_one_owner")
        ),
        sa.CheckConstraint("num_nonnulls(site_id, vpg_id) <= 1", name=op.f("ck_grants_one_scope")),
    )
    for table, owner in _OWNERS.items():
        op.create_index(f"ix_grants_{owner}", "grants", ["tenant_id", owner])
        op.execute(
            f"INSERT INTO grants (tenant_id, id, {owner}, role) "  # noqa: S608 - ours
            f"SELECT tenant_id, gen_random_uuid(), id, role FROM {table}"
        )
        op.drop_column(table, "role")
    for statement in protect_tenant_table("grants", verbs="SELECT, INSERT, DELETE"):
        op.execute(statement)


def downgrade() -> None:
    for table, owner in _OWNERS.items():
        op.add_column(table, sa.Column("role", sa.Text))
        op.execute(_BACK.format(table=table, owner=owner))
    for statement in _SHUT_OUT:
        op.execute(statement)
    for table in _OWNERS:
        op.alter_column(table, "role", nullable=False)
    op.drop_table("grants")
