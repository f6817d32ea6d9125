"""Places that hold or open a tenant's data, asked for when they are chosen, changed or resolved."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.datanodes.schemas import DEFAULT_STORE
from app.models import Host, JournalStore, Site, Tenant
from app.models.base import key_of
from app.rights.territory import check_may_hold, may_hold
from app.tenants.schemas import Plan


async def permitted_of(session: TenantSession) -> list[str] | None:
    """The territories in which the tenant's data may be; None: all."""
    tenant = await session.orm.get_one(Tenant, session.tenant_id)
    return Plan(**tenant.plan).territories


async def check_host(session: TenantSession, host: Host) -> None:
    """A host at a site has that site's law; Problem `jurisdiction`."""
    permitted = await permitted_of(session)
    if permitted is None or host.site_id is None:
        return
    site = await session.orm.get_one(Site, key_of(session.tenant_id, host.site_id))
    check_may_hold(permitted, site.territory, site.name)


async def check_destination(session: TenantSession, host_id: UUID) -> None:
    """The same of a host by its key, when what was asked for it is about to be done."""
    host = await session.orm.get_one(Host, key_of(session.tenant_id, host_id))
    await check_host(session, host)


def choose_store(permitted: Sequence[str] | None, stores: Sequence[tuple[str, str]]) -> str | None:
    """The name of the store that has the tenant's journals, of (name, territory) by their age: the
    default if it may, else the oldest that may. None: none may.
    """
    allowed = [name for name, territory in stores if may_hold(permitted, territory)]
    if DEFAULT_STORE in allowed:
        return DEFAULT_STORE
    return allowed[0] if allowed else None


async def stores_of(session: TenantSession) -> list[tuple[str, str]]:
    """(name, territory) of the deployment's stores by their age, for `choose_store`."""
    found = await session.orm.execute(
        select(JournalStore.name, JournalStore.territory).order_by(JournalStore.id)
    )
    return [(row.name, row.territory) for row in found]


def check_stores(permitted: Sequence[str] | None, stores: Sequence[tuple[str, str]]) -> None:
    """Problem `jurisdiction` if the deployment has stores, (name, territory) by their age, and none
    of them may hold the journals.
    """
    if stores and choose_store(permitted, stores) is None:
        name, territory = stores[0]
        check_may_hold(permitted, territory, f"the journal store {name}")
