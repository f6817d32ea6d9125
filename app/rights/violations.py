"""Groups that name or left something at a place where their data may not be. Raised and cleared at
the edge: whoever changes rights or places has it looked at again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from app.alerts.service import Raised, clear_alerts, open_alerts, raise_alerts
from app.database.sessions import TenantSession
from app.datanodes.schemas import DEFAULT_STORE
from app.events.ledger import Happening
from app.kit.ids import Kind, show
from app.models import Host, JournalStore, Machine, Site, Vpg, VpgDisk
from app.rights.places import permitted_of
from app.rights.territory import may_hold
from app.vpgs.state import LIVE

VIOLATED = "jurisdiction.violated"


async def review(session: TenantSession, now: datetime) -> list[Happening]:
    """Open an alert for each group that is concerned, and clear those of others. Five queries."""
    permitted = await permitted_of(session)
    places = await _places(session)
    bad = {
        vpg_id: [f"{what} in {territory}" for what, territory in found]
        for vpg_id, listed in places.items()
        if (found := [one for one in listed if not may_hold(permitted, one[1])])
    }
    raised = [_raised(vpg_id, sorted(set(where))) for vpg_id, where in sorted(bad.items())]
    subjects = {one.subject for one in raised}
    over = {one for one in await open_alerts(session, [VIOLATED]) if one[1] not in subjects}
    return [*await raise_alerts(session, raised, now), *await clear_alerts(session, over, now)]


def _raised(vpg_id: UUID, where: Sequence[str]) -> Raised:
    return Raised(
        VIOLATED,
        "error",
        show(Kind.VPG, vpg_id),
        f"The group's data may not be at {', '.join(where)}. Nothing more is sent there, and "
        "nothing there was deleted.",
        {"places": list(where)},
    )


async def _places(session: TenantSession) -> dict[UUID, list[tuple[str, str]]]:
    """By group: (what, territory) of its journal's default store, its sites and its pools."""
    stores = await session.orm.scalars(
        select(JournalStore.territory).where(JournalStore.name == DEFAULT_STORE)
    )
    store = stores.one_or_none()
    mine, live = session.tenant_id, sorted(LIVE)
    places: dict[UUID, list[tuple[str, str]]] = defaultdict(list)
    groups = await session.orm.execute(
        select(Vpg.id, Site.name, Site.territory)
        .outerjoin(
            Site,
            (Site.tenant_id == Vpg.tenant_id)
            & ((Site.id == Vpg.recovery_site_id) | (Site.id == Vpg.protected_site_id)),
        )
        .where(Vpg.tenant_id == mine, Vpg.lifecycle.in_(live))
    )
    for vpg_id, site, territory in groups:
        if store is not None:
            places[vpg_id].append((f"the journal store {DEFAULT_STORE}", store))
        if territory is not None:
            places[vpg_id].append((f"the site {site}", territory))
    pools = await session.orm.execute(
        select(VpgDisk.vpg_id, Site.name, Site.territory)
        .join(
            Machine, (Machine.tenant_id == VpgDisk.tenant_id) & (Machine.id == VpgDisk.machine_id)
        )
        .join(Host, (Host.tenant_id == Machine.tenant_id) & (Host.id == Machine.host_id))
        .join(Site, (Site.tenant_id == Host.tenant_id) & (Site.id == Host.site_id))
        .where(VpgDisk.tenant_id == mine, Host.placement_id.is_not(None))
        .distinct()
    )
    for vpg_id, pool, territory in pools:
        places[vpg_id].append((f"the pool {pool}", territory))
    return places
