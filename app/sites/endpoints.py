"""`/v1/sites`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request, Response, status

from app.http.etags import check_etag, put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import Site
from app.sites import service
from app.sites.schemas import SiteInput, SiteOutput, Territory

router = tenant_router("sites")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.SITES_READ)], [requires(Privilege.SITES_WRITE)]


@router.get("/sites", dependencies=_READ, summary="List sites")
async def list_sites(
    unit: Unit,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
    sort: Sort = None,
    territory: Annotated[Territory | None, Query()] = None,
) -> Page[SiteOutput]:
    """The tenant's sites, filtered and sorted, a page at a time."""
    filters = [] if territory is None else [Site.territory == territory]
    rows, following = await list_page(unit, Site, Listing(limit, cursor, sort), filters)
    return Page(items=[service.show_site(row) for row in rows], next_cursor=following)


@router.post(
    "/sites", dependencies=_WRITE, status_code=status.HTTP_201_CREATED, summary="Add a site"
)
async def create_site(unit: Unit, wanted: SiteInput, response: Response) -> SiteOutput:
    """A new site, in a territory that decides whose data may come there."""
    unit.require_at()
    site = await service.create_site(unit, wanted)
    response.headers["location"] = f"/v1/sites/{show(Kind.SITE, site.id)}"
    put_etag(response, site.version)
    return service.show_site(site)


@router.get("/sites/{site_id}", dependencies=_READ, summary="Get a site")
async def get_site(unit: Unit, site_id: str, response: Response) -> SiteOutput:
    """One site, with its ETag."""
    site = await service.get_site(unit, site_id)
    put_etag(response, site.version)
    return service.show_site(site)


@router.put("/sites/{site_id}", dependencies=_WRITE, summary="Replace a site's settings")
async def replace_site(
    unit: Unit, site_id: str, wanted: SiteInput, request: Request, response: Response
) -> SiteOutput:
    """All settings at once; If-Match says which version is meant."""
    site = await service.get_site(unit, site_id)
    check_etag(request, site.version)
    site = await service.replace_site(unit, site, wanted)
    put_etag(response, site.version)
    return service.show_site(site)


@router.delete(
    "/sites/{site_id}",
    dependencies=_WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove a site",
)
async def delete_site(unit: Unit, site_id: str, request: Request) -> None:
    """Remove a site that nothing uses; If-Match says which version is meant."""
    site = await service.get_site(unit, site_id)
    check_etag(request, site.version)
    await service.delete_site(unit, site)
