"""Where a tenant's restores are served, and to whose key a ticket is sealed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.datanodes.plan import NodePlace, choose_doors
from app.models import DataNode, RestoreDoor, Tenant
from app.models.datanodes import NodeState
from app.rights.territory import may_hold
from app.tenants.schemas import Plan


@dataclass(frozen=True)
class RestorePlaces:
    """The doors in the order in which a host tries them, and the certificate of each node."""

    doors: Sequence[str]
    chains: Sequence[str]


async def note_restore_door(
    session: TenantSession, node_id: UUID, chain: str, now: datetime
) -> None:
    """The tenant's restore process at this node has a new certificate (PEM, with its issuer's)."""
    row = {"certificate": chain, "made_at": now}
    await session.orm.execute(
        insert(RestoreDoor)
        .values(tenant_id=session.tenant_id, node_id=node_id, **row)
        .on_conflict_do_update(index_elements=["tenant_id", "node_id"], set_=row)
    )


async def restore_places(session: TenantSession, nodes_max: int) -> RestorePlaces:
    """The data nodes that can serve the tenant's restores; two queries."""
    tenant = await session.orm.get_one(Tenant, session.tenant_id)
    found = await session.orm.execute(
        select(DataNode.id, DataNode.territory, DataNode.doors, RestoreDoor.certificate)
        .join(RestoreDoor, RestoreDoor.node_id == DataNode.id)
        .where(RestoreDoor.tenant_id == session.tenant_id, DataNode.state == NodeState.ACTIVE)
        .order_by(RestoreDoor.made_at.desc())
    )
    permitted = Plan(**tenant.plan).territories
    rows = [row for row in found if may_hold(permitted, row.territory)][:nodes_max]
    places = [NodePlace(row.id, row.territory, row.doors) for row in rows]
    doors = choose_doors(session.tenant_id, permitted, places)
    return RestorePlaces(doors, [row.certificate for row in rows])
