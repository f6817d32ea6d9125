"""`/v1/api-keys`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request, Response, status

from app.http.etags import check_etag, put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity import service
from app.identity.grants import load_grants, resolve_grants, show_grants
from app.identity.privileges import Privilege
from app.identity.schemas import ApiKeyCreated, ApiKeyInput, ApiKeyOutput, GrantsInput
from app.identity.scopes import Granted
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import ApiKey

router = tenant_router("api-keys")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.API_KEYS_READ)], [requires(Privilege.API_KEYS_WRITE)]


def _show(key: ApiKey, grants: Sequence[Granted]) -> ApiKeyOutput:
    return ApiKeyOutput(
        id=show(Kind.API_KEY, key.id),
        name=key.name,
        grants=show_grants(key.tenant_id, grants),
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )


async def _shown(unit: TenantUnit, keys: Sequence[ApiKey]) -> list[ApiKeyOutput]:
    grants = await load_grants(unit.session, keys)
    return [_show(key, grants[key.id]) for key in keys]


@router.get("/api-keys", dependencies=_READ, summary="List API keys")
async def list_api_keys(
    unit: Unit, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Page[ApiKeyOutput]:
    """The tenant's API keys, revoked ones too, a page at a time."""
    rows, following = await list_page(unit, ApiKey, Listing(limit, cursor, sort))
    return Page(items=await _shown(unit, rows), next_cursor=following)


@router.post(
    "/api-keys",
    dependencies=_WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Make an API key",
)
async def create_api_key(unit: Unit, wanted: ApiKeyInput, response: Response) -> ApiKeyCreated:
    """A new API key with its first grant. Its token is in this answer and nowhere else."""
    grants = await resolve_grants(unit, [wanted])
    key, token = await service.create_api_key(unit, wanted, grants)
    shown = _show(key, grants)
    response.headers["location"] = f"/v1/api-keys/{shown.id}"
    put_etag(response, key.version)
    return ApiKeyCreated(**shown.model_dump(), token=token.text)


@router.get("/api-keys/{api_key_id}", dependencies=_READ, summary="Get an API key")
async def get_api_key(unit: Unit, api_key_id: str, response: Response) -> ApiKeyOutput:
    """One API key, without its secret."""
    key = await service.get_api_key(unit, api_key_id)
    put_etag(response, key.version)
    return (await _shown(unit, [key]))[0]


@router.put(
    "/api-keys/{api_key_id}/grants", dependencies=_WRITE, summary="Replace an API key's grants"
)
async def grant_api_key(
    unit: Unit, api_key_id: str, wanted: GrantsInput, request: Request, response: Response
) -> ApiKeyOutput:
    """All its grants at once; If-Match says which version is meant. Nobody gives what he does not
    have.
    """
    key = await service.get_api_key(unit, api_key_id, lock=True)
    check_etag(request, key.version)
    await service.grant_api_key(unit, key, await resolve_grants(unit, wanted.grants))
    await unit.session.orm.flush()
    put_etag(response, key.version)
    return (await _shown(unit, [key]))[0]


@router.post("/api-keys/{api_key_id}:revoke", dependencies=_WRITE, summary="Revoke an API key")
async def revoke_api_key(unit: Unit, api_key_id: str, response: Response) -> ApiKeyOutput:
    """End a key at once and for good; never delayed."""
    key = await service.get_api_key(unit, api_key_id)
    await service.revoke_api_key(unit, key)
    put_etag(response, key.version)
    return (await _shown(unit, [key]))[0]
