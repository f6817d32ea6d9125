"""`/v1/provider/tenants/{tenant_id}:enter`, `/v1/provider/audit`, `/v1/provider-entries`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Response, status

from app.entries import service
from app.entries.schemas import (
    EnterInput,
    EntryCreated,
    EntryOutput,
    ProviderActOutput,
    ProviderActPage,
)
from app.http.etags import put_etag
from app.http.listing import Asked, Limit, list_page
from app.http.lookup import find
from app.http.routing import provider_router, requires, tenant_router
from app.http.schemas import Page
from app.http.unit import ProviderUnit, TenantUnit, provider_unit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import ProviderAct, ProviderEntry

router = tenant_router("provider-entries")
provider = provider_router("provider")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
OfProvider = Annotated[ProviderUnit, Depends(provider_unit)]
_READ = [requires(Privilege.PROVIDER_ENTRIES_READ)]
_WRITE = [requires(Privilege.PROVIDER_ENTRIES_WRITE)]
_TENANTS = [requires(Privilege.PROVIDER_TENANTS)]
After = Annotated[int, Query(ge=0, le=2**62, description="Only what comes after this place.")]


def _show(entry: ProviderEntry) -> EntryOutput:
    return EntryOutput(
        id=show(Kind.PROVIDER_ENTRY, entry.id),
        by=show(Kind.PROVIDER_KEY, entry.provider_key_id),
        reason=entry.reason,
        created_at=entry.created_at,
        expires_at=entry.expires_at,
        ended_at=entry.ended_at,
    )


def _show_act(act: ProviderAct) -> ProviderActOutput:
    return ProviderActOutput(
        place=act.place,
        at=act.at,
        actor=act.actor,
        action=act.action,
        subject=act.subject,
        details=act.details,
        address=act.address,
        request_id=act.request_id,
    )


@provider.post(
    "/tenants/{tenant_id}:enter",
    dependencies=_TENANTS,
    status_code=status.HTTP_201_CREATED,
    summary="Enter a tenant",
)
async def enter_tenant(unit: OfProvider, tenant_id: str, wanted: EnterInput) -> EntryCreated:
    """For at most an hour, and only to read. The tenant sees it with its reason, and can end it."""
    entry, token = await service.enter_tenant(unit, tenant_id, wanted)
    unit.shows_secret = show(Kind.PROVIDER_ENTRY, entry.id)
    return EntryCreated(**_show(entry).model_dump(), token=token.text)


@provider.get("/audit", dependencies=_TENANTS, summary="Read the provider's log")
async def list_provider_acts(
    unit: OfProvider, after: After = 0, limit: Limit = LIMIT_DEFAULT
) -> ProviderActPage:
    """Who of the staff entered which tenant, when, from where, why: in order."""
    rows = await service.read_acts(unit, after, limit)
    return ProviderActPage(
        items=[_show_act(row) for row in rows], after=rows[-1].place if rows else after
    )


@router.get("/provider-entries", dependencies=_READ, summary="List the provider's entries")
async def list_provider_entries(unit: Unit, asked: Asked) -> Page[EntryOutput]:
    """Each time that the provider's staff came in, a page at a time."""
    rows, following = await list_page(unit, ProviderEntry, asked)
    return Page(items=[_show(row) for row in rows], next_cursor=following)


@router.get(
    "/provider-entries/{provider_entry_id}", dependencies=_READ, summary="Get a provider's entry"
)
async def get_provider_entry(unit: Unit, provider_entry_id: str, response: Response) -> EntryOutput:
    """One entry."""
    entry = await find(unit, ProviderEntry, Kind.PROVIDER_ENTRY, provider_entry_id)
    put_etag(response, entry.version)
    return _show(entry)


@router.post(
    "/provider-entries/{provider_entry_id}:end", dependencies=_WRITE, summary="End an entry"
)
async def end_provider_entry(unit: Unit, provider_entry_id: str) -> EntryOutput:
    """Shut the provider's staff out at once; never delayed. Repeats change nothing."""
    entry = await find(unit, ProviderEntry, Kind.PROVIDER_ENTRY, provider_entry_id, lock=True)
    await service.end_entry(unit, entry)
    return _show(entry)
