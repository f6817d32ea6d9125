"""`/v1/provider/sites`, `/v1/provider/pools`, `/v1/provider/hosts`, and a tenant's `/v1/pools`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, status

from app.hosts.schemas import JoinTokenCreated
from app.hosts.service import show_token
from app.hosts.tokens import join_text
from app.http.listing import Asked, list_page
from app.http.routing import provider_router, requires, tenant_router
from app.http.schemas import Page
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.models import Host, Pool, PoolGrant, Site
from app.models.tenants import PROVIDER_ID
from app.pools import service
from app.pools.schemas import (
    PoolOutput,
    ProviderHostDetail,
    ProviderHostPage,
    ProviderJoinTokenInput,
    ProviderPoolInput,
    ProviderPoolOutput,
    ProviderPoolPage,
    ProviderSitePage,
)
from app.pools.scope import scope_of
from app.pools.showing import show_pools
from app.sites.schemas import SiteInput, SiteOutput
from app.sites.service import show_site

router = tenant_router("pools")
provider = provider_router("provider")
Unit = Annotated[ProviderUnit, Depends(provider_unit)]
_POOLS = [requires(Privilege.PROVIDER_POOLS)]
_CREATED = status.HTTP_201_CREATED


def _show_pool(pool: Pool) -> ProviderPoolOutput:
    return ProviderPoolOutput(
        id=show(Kind.POOL, pool.id),
        name=pool.name,
        description=pool.description,
        site_id=show(Kind.SITE, pool.site_id),
        created_at=pool.created_at,
    )


@router.get("/pools", dependencies=[requires(Privilege.SITES_READ)], summary="List pools")
async def list_pools(
    unit: Annotated[TenantUnit, Depends(tenant_unit)], asked: Asked
) -> Page[PoolOutput]:
    """The provider's pools that the tenant may use, and how much of each is free for it."""
    rows, following = await list_page(unit, PoolGrant, asked)
    return Page(items=await show_pools(unit.session, rows), next_cursor=following)


@provider.get("/sites", dependencies=_POOLS, summary="List the provider's sites")
async def list_provider_sites(unit: Unit) -> ProviderSitePage:
    """Places with hypervisors of the provider's."""
    rows = await service.list_own(unit, Site)
    return ProviderSitePage(items=[show_site(row) for row in rows])


@provider.post("/sites", dependencies=_POOLS, status_code=_CREATED, summary="Add a provider's site")
async def create_provider_site(unit: Unit, wanted: SiteInput) -> SiteOutput:
    """A place with hypervisors, in a territory that decides whose data may come there."""
    return show_site(await service.create_own_site(unit, wanted))


@provider.get("/pools", dependencies=_POOLS, summary="List the provider's pools")
async def list_provider_pools(unit: Unit) -> ProviderPoolPage:
    """All pools."""
    rows = await service.list_own(unit, Pool)
    return ProviderPoolPage(items=[_show_pool(row) for row in rows])


@provider.post("/pools", dependencies=_POOLS, status_code=_CREATED, summary="Add a pool")
async def create_provider_pool(unit: Unit, wanted: ProviderPoolInput) -> ProviderPoolOutput:
    """A pool at a site; no tenant may use it before its policy says so."""
    return _show_pool(await service.create_pool(unit, wanted))


@provider.post(
    "/join-tokens",
    dependencies=_POOLS,
    status_code=_CREATED,
    summary="Let a provider's host join",
)
async def create_provider_join_token(
    unit: Unit, wanted: ProviderJoinTokenInput
) -> JoinTokenCreated:
    """A token that lets one host join a pool once within minutes: in this answer alone."""
    row, token = await service.create_host_token(unit, wanted)
    text = join_text(token, unit.tools.root.fingerprint)
    unit.shows_secret = show(Kind.JOIN_TOKEN, row.id)
    return JoinTokenCreated(**show_token(row).model_dump(), token=text)


@provider.get("/hosts", dependencies=_POOLS, summary="List the provider's hosts")
async def list_provider_hosts(unit: Unit) -> ProviderHostPage:
    """All hosts of all pools, revoked ones too."""
    rows = await service.list_own(unit, Host)
    return ProviderHostPage(items=[service.show_own_host(row) for row in rows])


@provider.get("/hosts/{host_id}", dependencies=_POOLS, summary="Get a provider's host")
async def get_provider_host(unit: Unit, host_id: str) -> ProviderHostDetail:
    """One host, and how its owner's process and each placed tenant's are."""
    async with scope_of(unit, PROVIDER_ID) as own:
        host = await service.get_own_host(own, host_id)
    appliances = await service.appliances_of(unit, host)
    return ProviderHostDetail(**service.show_own_host(host).model_dump(), appliances=appliances)
