"""A new group: its row, what is known of it and its key are entered by one statement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import CTE, JSON, bindparam, func, insert, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import make_transient_to_detached

from app.http.unit import TenantUnit
from app.keys.port import WrappedKey
from app.keys.service import ANY_WRAPPED, make_group_key, note_group_key
from app.kit.ids import Kind, new_uuid, show
from app.models import GroupKeyRecord, JournalStore, Tenant, Vpg, VpgStatus
from app.models.tenants import TENANT_LOCK
from app.rights.places import check_stores
from app.tenants.schemas import Plan
from app.vpgs.members import USAGE, check_plan, usage_of
from app.vpgs.quotas import Usage, check_usage
from app.vpgs.schemas import VpgInput, VpgOutput
from app.vpgs.service import check_settings, fill, name_taken, resolve
from app.vpgs.showing import show_new, show_now
from app.vpgs.state import Lifecycle, Link, Recovery, Sync

_ROWS = (Vpg, VpgStatus, GroupKeyRecord)
_Made = tuple[Vpg, VpgStatus, GroupKeyRecord]


@dataclass(frozen=True)
class _Ground:
    """What decides about a new group. The tenant stays loaded while this is kept."""

    tenant: Tenant
    plan: Plan
    stores: list[tuple[str, str]]
    wrapped: str | None


#: The tenant, locked: what uses its plan up comes one after the other. What it has used by then is
#: asked for later: the lock may have been waited for, and a statement sees what was when it began.
_GROUND = (
    select(
        Tenant,
        select(
            func.json_agg(
                aggregate_order_by(
                    func.json_build_array(JournalStore.name, JournalStore.territory),
                    JournalStore.id,
                ),
                type_=JSON,
            )
        ).scalar_subquery(),
        ANY_WRAPPED.scalar_subquery(),
    )
    .where(Tenant.id == bindparam("tenant_id"))
    .with_for_update(of=Tenant, **TENANT_LOCK)
    .execution_options(populate_existing=True)
)


def _entered(model: Any) -> CTE:
    table = model.__table__
    values = {
        column.name: bindparam(f"{table.name}_{column.name}", type_=column.type)
        for column in table.columns
    }
    return insert(table).values(values).cte(f"new_{table.name}")


#: Enters the rows, and tells what the tenant protected before them.
_ENTER = USAGE.add_cte(*(_entered(model) for model in _ROWS))


def _values(row: Vpg | VpgStatus | GroupKeyRecord) -> dict[str, Any]:
    names = row.__table__.columns.keys()
    return {f"{row.__tablename__}_{name}": getattr(row, name) for name in names}


async def create_vpg(unit: TenantUnit, wanted: VpgInput) -> tuple[Vpg, VpgOutput]:
    """Make a group with its members, and as the API shows it; Problems `name_taken`,
    `quota_exceeded`, `disk_protected`, `settings_refused`, `invalid_fields`, `jurisdiction`.
    """
    ground = await _ground(unit)
    values = await resolve(unit, wanted)
    unit.require_at(values["protected_site_id"])
    vpg = _new_vpg(unit, wanted.name, values)
    check_settings(ground.plan, vpg)
    check_stores(ground.plan.territories, ground.stores)
    key = await make_group_key(unit, vpg.id, ground.wrapped)
    status = _new_status(vpg)
    before = await _enter(unit, (vpg, status, _new_key(vpg, key)))
    check_usage(ground.plan, replace(before, vpgs=before.vpgs + 1))
    unit.note("vpgs.created", show(Kind.VPG, vpg.id), name=vpg.name)
    if not wanted.machines:
        note_group_key(unit, key)
        return vpg, show_new(vpg, status, unit.now)
    make_transient_to_detached(vpg)
    unit.session.orm.add(vpg)
    await fill(unit, vpg, wanted.machines)
    await check_plan(unit, ground.plan)
    note_group_key(unit, key)
    return vpg, await show_now(unit, vpg)


async def _ground(unit: TenantUnit) -> _Ground:
    found = await unit.session.orm.execute(_GROUND, {"tenant_id": unit.session.tenant_id})
    tenant, stores, wrapped = found.one()
    return _Ground(tenant, Plan(**tenant.plan), [tuple(one) for one in stores or ()], wrapped)


async def _enter(unit: TenantUnit, rows: _Made) -> Usage:
    given = {"tenant_id": unit.session.tenant_id}
    for row in rows:
        given |= _values(row)
    try:
        return usage_of((await unit.session.orm.execute(_ENTER, given)).one())
    except IntegrityError:
        raise name_taken(rows[0].name) from None


def _new_vpg(unit: TenantUnit, name: str, values: dict[str, Any]) -> Vpg:
    return Vpg(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        name=name,
        lifecycle=Lifecycle.DRAFT,
        recovery=Recovery.NONE,
        **values,
    )


def _new_status(vpg: Vpg) -> VpgStatus:
    return VpgStatus(
        tenant_id=vpg.tenant_id,
        vpg_id=vpg.id,
        sync=Sync.NONE,
        link=Link.DISCONNECTED,
        backlog_bytes=0,
    )


def _new_key(vpg: Vpg, made: WrappedKey) -> GroupKeyRecord:
    return GroupKeyRecord(
        tenant_id=vpg.tenant_id,
        vpg_id=vpg.id,
        wrapped=made.dump(),
        created_at=vpg.created_at,
    )
