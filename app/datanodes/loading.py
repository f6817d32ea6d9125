"""Tenants' records, read from rows: each tenant's in that tenant's own scope."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import select, update

from app.database.sessions import Database, SystemSession, TenantSession
from app.datanodes.records import HostRow, TenantRow, make_record
from app.datanodes.stores import access_of, chosen_store, stores_by_age
from app.kit.ids import Kind, parse, show
from app.models import (
    DataNode,
    Host,
    JournalStore,
    Machine,
    Tenant,
    TenantAuthority,
    TenantRecordNumber,
    Vpg,
    VpgDisk,
)
from app.models.datanodes import NodeState
from app.models.hosts import HostState
from app.models.tenants import PROVIDER_ID, TenantState
from app.rights.places import choose_store
from app.rights.territory import may_hold
from app.tenants.schemas import Plan
from app.vpgs.state import LIVE
from host_agent.wire.serving import ServingRecord

if TYPE_CHECKING:
    from app.datanodes.gateway import NodeTools

Versions = dict[str, int]


async def record_versions(session: SystemSession, node: DataNode) -> Versions:
    """The newest record's number of each tenant that this node is to serve."""
    if node.state != NodeState.ACTIVE:
        return {}
    table = TenantRecordNumber
    stores = await places_of_stores(session)
    found = await session.orm.execute(
        select(table.tenant_id, table.version, Tenant.plan)
        .join(Tenant, Tenant.id == table.tenant_id)
        .where(Tenant.state == TenantState.ACTIVE, Tenant.id != PROVIDER_ID)
    )
    return {
        show(Kind.TENANT, row.tenant_id): row.version
        for row in found
        if _may_serve(row.plan.get("territories"), node.territory, stores)
    }


def _may_serve(
    permitted: Sequence[str] | None, territory: str, stores: Sequence[tuple[str, str]]
) -> bool:
    """Whether the tenant's data may be at the node, and its journal somewhere. Before there is any
    store a node is told of tenants that wait for one.
    """
    has_store = not stores or choose_store(permitted, stores) is not None
    return has_store and may_hold(permitted, territory)


async def places_of_stores(session: SystemSession) -> list[tuple[str, str]]:
    """(name, territory) of all stores by their age."""
    found = await session.orm.execute(
        select(JournalStore.name, JournalStore.territory).order_by(JournalStore.id)
    )
    return [(row.name, row.territory) for row in found]


async def raise_above(database: Database, tenant: str, held: int) -> int:
    """A number above what a node holds: the database was set back. Returns it."""
    tenant_id = parse(Kind.TENANT, tenant)
    table = TenantRecordNumber
    async with database.tenant(tenant_id) as session:
        found = await session.orm.execute(
            update(table)
            .where(table.tenant_id == tenant_id, table.version <= held)
            .values(version=held + 1)
            .returning(table.version)
        )
        await session.commit()
        row = found.first()
    return held if row is None else int(row.version)


async def load_records(tools: NodeTools, tenants: Sequence[str]) -> AsyncIterator[ServingRecord]:
    """The records of these tenants, one transaction each; none of a tenant that has no store."""
    if not tenants:
        return
    async with tools.database.system() as session:
        stores = await stores_by_age(session)
    for tenant in tenants:
        async with tools.database.tenant(parse(Kind.TENANT, tenant)) as session:
            # The number first: what is read after it may be newer, and is then sent once more.
            row = await _tenant_row(session)
            store = await chosen_store(session, stores)
            if store is None:
                continue
            access = await access_of(session, store, tools.sealer)
            if row is not None and access is not None:
                yield make_record(row, access, await _host_rows(session), tools.clock.now())


async def _tenant_row(session: TenantSession) -> TenantRow | None:
    version = await session.orm.scalar(
        select(TenantRecordNumber.version).where(TenantRecordNumber.tenant_id == session.tenant_id)
    )
    certificate = await session.orm.scalar(
        select(TenantAuthority.certificate).where(TenantAuthority.tenant_id == session.tenant_id)
    )
    tenant = await session.orm.get(Tenant, session.tenant_id)
    if version is None or certificate is None or tenant is None:
        return None
    rate = Plan(**tenant.plan).stream_bytes_per_second_max
    return TenantRow(show(Kind.TENANT, session.tenant_id), version, certificate, rate)


async def _host_rows(session: TenantSession) -> list[HostRow]:
    groups: dict[UUID, set[str]] = defaultdict(set)
    found = await session.orm.execute(
        select(Machine.host_id, Vpg.id)
        .join(
            VpgDisk,
            (VpgDisk.tenant_id == Machine.tenant_id) & (VpgDisk.machine_id == Machine.id),
        )
        .join(Vpg, (Vpg.tenant_id == VpgDisk.tenant_id) & (Vpg.id == VpgDisk.vpg_id))
        .where(Machine.tenant_id == session.tenant_id, Vpg.lifecycle.in_(sorted(LIVE)))
        .distinct()
    )
    for host_id, vpg_id in found:
        groups[host_id].add(show(Kind.VPG, vpg_id))
    hosts = await session.orm.execute(
        select(Host.id, Host.state, Host.revoked_at).where(Host.tenant_id == session.tenant_id)
    )
    return [
        HostRow(
            show(Kind.HOST, row.id),
            None if row.state == HostState.ACTIVE else row.revoked_at,
            sorted(groups[row.id]),
        )
        for row in hosts
    ]
