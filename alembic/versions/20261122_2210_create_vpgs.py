"""Machines, disks, groups, checkpoints, operations, service profiles, alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.roles import SYSTEM, protect_tenant_table

revision = "20261122_2210"
down_revision = "20261122_1950"

_INSTANT = sa.TIMESTAMP(timezone=True)
_JSON = postgresql.JSONB
_ALL = "SELECT, INSERT, UPDATE, DELETE"
_TABLES = {
    "operations": "SELECT, INSERT, UPDATE",
    "machines": "SELECT, INSERT, UPDATE",
    "disks": "SELECT, INSERT, UPDATE",
    "host_inventories": "SELECT, INSERT, UPDATE",
    "service_profiles": _ALL,
    "vpgs": "SELECT, INSERT, UPDATE",
    "vpg_statuses": "SELECT, INSERT, UPDATE",
    "vpg_disks": _ALL,
    "vpg_plans": "SELECT, INSERT, UPDATE",
    "host_assignments": "SELECT, INSERT, UPDATE",
    "checkpoint_packs": _ALL,
    "checkpoints": _ALL,
    "alerts": "SELECT, INSERT, UPDATE",
}


def _needed(**kinds: object) -> list[sa.Column[object]]:
    return [sa.Column(name, kind, nullable=False) for name, kind in kinds.items()]  # type: ignore[arg-type]


def _optional(**kinds: object) -> list[sa.Column[object]]:
    return [sa.Column(name, kind, nullable=True) for name, kind in kinds.items()]  # type: ignore[arg-type]


def _table(name: str, keys: list[sa.Column[object]], *columns: sa.SchemaItem) -> None:
    op.create_table(
        name,
        sa.Column("tenant_id", sa.Uuid, sa.ForeignKey("tenants.id"), nullable=False),
        *keys,
        *columns,
        sa.PrimaryKeyConstraint("tenant_id", *(key.name for key in keys)),
    )


def _resource(name: str, *columns: sa.SchemaItem) -> None:
    common = _needed(created_at=_INSTANT, version=sa.Integer)
    _table(name, _needed(id=sa.Uuid), *common, *columns)


def _to(table: str, column: str, **options: str) -> sa.ForeignKeyConstraint:
    """A reference to a tenant's object: the tenant is part of it, so it cannot be another's."""
    return sa.ForeignKeyConstraint(
        ["tenant_id", column], [f"{table}.tenant_id", f"{table}.id"], **options
    )


def _create_operations() -> None:
    _resource(
        "operations",
        *_needed(kind=sa.Text, subject=sa.Text, state=sa.Text, progress=sa.Float),
        *_needed(steps=_JSON, input=_JSON, is_cancellable=sa.Boolean, requested_by=sa.Text),
        *_optional(outcome=_JSON, error=_JSON, due_at=_INSTANT, started_at=_INSTANT),
        *_optional(cancel_requested_at=_INSTANT, finished_at=_INSTANT),
    )
    op.create_index(
        "ix_operations_unfinished",
        "operations",
        ["tenant_id", "due_at"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index("ix_operations_subject", "operations", ["tenant_id", "subject"])


def _create_machines() -> None:
    _resource(
        "machines",
        *_needed(host_id=sa.Uuid, name=sa.Text, labels=_JSON),
        *_needed(is_present=sa.Boolean, seen_at=_INSTANT),
        *_optional(uuid=sa.Text),
        _to("hosts", "host_id"),
        sa.UniqueConstraint("tenant_id", "host_id", "name"),
    )
    _resource(
        "disks",
        *_needed(machine_id=sa.Uuid, name=sa.Text, source=_JSON),
        *_needed(bytes=sa.BigInteger, is_present=sa.Boolean),
        _to("machines", "machine_id"),
        sa.UniqueConstraint("tenant_id", "machine_id", "name"),
    )
    _table(
        "host_inventories",
        _needed(host_id=sa.Uuid),
        *_needed(digest=sa.Text, reported_at=_INSTANT),
        _to("hosts", "host_id"),
    )


def _create_vpgs() -> None:
    _resource(
        "service_profiles",
        *_needed(name=sa.Text, description=sa.Text, settings=_JSON),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    _resource(
        "vpgs",
        *_needed(name=sa.Text, description=sa.Text, labels=_JSON, lifecycle=sa.Text),
        *_needed(recovery=sa.Text, settings=_JSON, store=sa.Text),
        *_optional(profile_id=sa.Uuid, protected_site_id=sa.Uuid, recovery_site_id=sa.Uuid),
        _to("service_profiles", "profile_id"),
        _to("sites", "protected_site_id"),
        _to("sites", "recovery_site_id"),
    )
    # A removed group's journal stays under its id; its name is free again.
    op.create_index(
        "uq_vpgs_name",
        "vpgs",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("lifecycle <> 'removed'"),
    )
    op.create_index("ix_vpgs_created_at", "vpgs", ["tenant_id", "created_at", "id"])
    _table(
        "vpg_statuses",
        _needed(vpg_id=sa.Uuid),
        *_needed(sync=sa.Text, link=sa.Text, backlog_bytes=sa.BigInteger),
        *_optional(recoverable_at=_INSTANT, oldest_at=_INSTANT, gap_reason=sa.Text),
        *_optional(reported_at=_INSTANT, protected_since=_INSTANT),
        _to("vpgs", "vpg_id"),
    )
    _table(
        "vpg_disks",
        _needed(disk_id=sa.Uuid),
        *_needed(vpg_id=sa.Uuid, machine_id=sa.Uuid, name=sa.Text, added_at=_INSTANT),
        _to("disks", "disk_id"),
        _to("vpgs", "vpg_id"),
        _to("machines", "machine_id"),
        sa.UniqueConstraint("tenant_id", "vpg_id", "name"),
    )
    op.create_index("ix_vpg_disks_machine", "vpg_disks", ["tenant_id", "machine_id"])
    _resource(
        "vpg_plans",
        *_needed(vpg_id=sa.Uuid, vpg_version=sa.Integer, change=_JSON, effects=_JSON),
        *_needed(expires_at=_INSTANT),
        *_optional(applied_at=_INSTANT),
        _to("vpgs", "vpg_id"),
    )
    _table(
        "host_assignments",
        _needed(host_id=sa.Uuid),
        *_needed(version=sa.BigInteger, held_version=sa.BigInteger, changed_at=_INSTANT),
        _to("hosts", "host_id"),
    )


def _create_checkpoints() -> None:
    _table(
        "checkpoint_packs",
        _needed(vpg_id=sa.Uuid, begins_at=_INSTANT),
        *_needed(count=sa.Integer, complete=sa.Integer, packed=sa.LargeBinary),
        *_needed(response_us_max=sa.Integer, hold_us_max=sa.Integer, skew_us_max=sa.Integer),
        *_optional(first_complete_at=_INSTANT, last_complete_at=_INSTANT),
        _to("vpgs", "vpg_id"),
    )
    _resource(
        "checkpoints",
        *_needed(vpg_id=sa.Uuid, kind=sa.Text, state=sa.Text, expected_at=_INSTANT),
        *_needed(positions=_JSON, in_pack=sa.Boolean, is_pinned=sa.Boolean),
        *_optional(tag=sa.Text, taken_at=_INSTANT, error=_JSON, pin_reason=sa.Text),
        *_optional(response_us=sa.Integer, hold_us=sa.Integer, skew_us=sa.Integer),
        *_optional(operation_id=sa.Uuid),
        _to("vpgs", "vpg_id"),
    )
    op.create_index("ix_checkpoints_vpg", "checkpoints", ["tenant_id", "vpg_id", "expected_at"])


def _create_alerts() -> None:
    _resource(
        "alerts",
        *_needed(code=sa.Text, level=sa.Text, subject=sa.Text, message=sa.Text, data=_JSON),
        *_optional(acknowledged_at=_INSTANT, acknowledged_by=sa.Text, cleared_at=_INSTANT),
    )
    # Raising twice is one alert, whoever raises.
    op.create_index(
        "uq_alerts_open",
        "alerts",
        ["tenant_id", "code", "subject"],
        unique=True,
        postgresql_where=sa.text("cleared_at IS NULL"),
    )


def upgrade() -> None:
    _create_operations()
    _create_machines()
    _create_vpgs()
    _create_checkpoints()
    _create_alerts()
    for table in ("machines", "vpgs"):
        op.create_index(f"ix_{table}_labels", table, ["labels"], postgresql_using="gin")
    for table, verbs in _TABLES.items():
        for statement in protect_tenant_table(table, verbs=verbs):
            op.execute(statement)
    # What is due is found without a tenant's scope: ids, states and times alone.
    op.execute(
        f"CREATE POLICY operations_of_system ON operations FOR SELECT TO {SYSTEM} USING (true)"
    )
    op.execute(
        f"GRANT SELECT (tenant_id, id, kind, state, due_at, created_at) ON operations TO {SYSTEM}"
    )


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)
