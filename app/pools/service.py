"""The provider's own sites, pools and hosts: rows of its own scope."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.entries.service import note_act
from app.hosts.service import JoinRight, add_join_token, show_host
from app.http.lookup import find
from app.http.unit import ProviderUnit, TenantUnit
from app.identity.tokens import Token
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem, not_found
from app.models import ApplianceHealth, Host, JoinToken, Placement, Pool, Site
from app.models.base import Resource
from app.models.tenants import PROVIDER_ID
from app.pools.schemas import (
    ApplianceOutput,
    ProviderHostOutput,
    ProviderJoinTokenInput,
    ProviderPoolInput,
)
from app.pools.scope import ensure_own_scope, scope_of
from app.sites.schemas import SiteInput
from app.sites.service import create_site, get_site

R = TypeVar("R", bound=Resource)


async def list_own(unit: ProviderUnit, model: type[R]) -> Sequence[R]:
    """What the provider has of a kind, by its age."""
    async with unit.tools.database.tenant(PROVIDER_ID) as session:
        found = await session.orm.scalars(
            select(model).where(model.tenant_id == PROVIDER_ID).order_by(model.id)
        )
        return found.all()


async def create_own_site(unit: ProviderUnit, wanted: SiteInput) -> Site:
    """A site of the provider's; Problem `name_taken`."""
    await ensure_own_scope(unit)
    async with scope_of(unit, PROVIDER_ID) as own:
        site = await create_site(own, wanted)
    shown = show(Kind.SITE, site.id)
    await note_act(unit, "sites.created", shown, {"name": site.name, "territory": site.territory})
    return site


async def create_pool(unit: ProviderUnit, wanted: ProviderPoolInput) -> Pool:
    """A pool at a site of the provider's; Problems `not_found`, `name_taken`."""
    async with scope_of(unit, PROVIDER_ID) as own:
        site = await get_site(own, wanted.site_id)
        pool = Pool(
            tenant_id=PROVIDER_ID,
            id=new_uuid(unit.now),
            created_at=unit.now,
            version=1,
            name=wanted.name,
            description=wanted.description,
            site_id=site.id,
        )
        own.session.orm.add(pool)
        try:
            await own.session.orm.flush()
        except IntegrityError:
            raise Problem("name_taken", f"There is a pool named {wanted.name} already.") from None
        shown = show(Kind.POOL, pool.id)
        own.note("pools.created", shown, name=pool.name, site=wanted.site_id)
    await note_act(unit, "pools.created", shown, {"name": pool.name, "site": wanted.site_id})
    return pool


async def get_pool(own: TenantUnit, pool_id: str) -> Pool:
    """The provider's pool, in its own scope; Problem `not_found`."""
    return await find(own, Pool, Kind.POOL, pool_id)


async def create_host_token(
    unit: ProviderUnit, wanted: ProviderJoinTokenInput
) -> tuple[JoinToken, Token]:
    """A right to join a pool, and its token; Problem `not_found`."""
    async with scope_of(unit, PROVIDER_ID) as own:
        pool = await get_pool(own, wanted.pool_id)
        right = JoinRight(wanted.name, pool.site_id, pool.id)
        lifetime = timedelta(seconds=wanted.lifetime_seconds)
        row, token = await add_join_token(own, right, lifetime)
        shown = show(Kind.JOIN_TOKEN, row.id)
        own.note("join_tokens.created", shown, name=row.name, pool=wanted.pool_id)
    details: dict[str, object] = {"name": row.name, "pool": wanted.pool_id}
    await note_act(unit, "join_tokens.created", shown, details)
    return row, token


async def appliances_of(unit: ProviderUnit, host: Host) -> list[ApplianceOutput]:
    """The newest health record of each process on the host; one query."""
    placed = select(Placement.host_id).where(
        Placement.owner_host_id == host.id, Placement.withdrawn_at.is_(None)
    )
    found = await unit.session.orm.scalars(
        select(ApplianceHealth)
        .where((ApplianceHealth.appliance == host.id) | ApplianceHealth.appliance.in_(placed))
        .order_by(ApplianceHealth.appliance)
    )
    return [
        ApplianceOutput(
            appliance=show(Kind.HOST, row.appliance),
            health=row.health,
            capacity_class=row.capacity_class,
            epoch=row.epoch,
            time=row.at,
        )
        for row in found
    ]


def show_own_host(host: Host) -> ProviderHostOutput:
    """As the provider's staff see it."""
    assert host.pool_id is not None
    return ProviderHostOutput(**show_host(host).model_dump(), pool_id=show(Kind.POOL, host.pool_id))


async def get_own_host(own: TenantUnit, host_id: str, *, lock: bool = False) -> Host:
    """A host of the provider's, in its own scope; Problem `not_found`."""
    host = await find(own, Host, Kind.HOST, host_id, lock=lock)
    if host.pool_id is None:
        raise not_found()
    return host
