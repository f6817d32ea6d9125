"""`/v1/api-keys`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Response, status

from app.http.etags import put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity import service
from app.identity.privileges import Privilege, Role
from app.identity.schemas import ApiKeyCreated, ApiKeyInput, ApiKeyOutput
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import ApiKey

router = tenant_router("api-keys")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.API_KEYS_READ)], [requires(Privilege.API_KEYS_WRITE)]


def show_api_key(key: ApiKey) -> ApiKeyOutput:
    """A key as the API shows it."""
    return ApiKeyOutput(
        id=show(Kind.API_KEY, key.id),
        name=key.name,
        role=Role(key.role),
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )


@router.get("/api-keys", dependencies=_READ, summary="List API keys")
async def list_api_keys(
    unit: Unit, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Page[ApiKeyOutput]:
    """The tenant's API keys, revoked ones too, a page at a time."""
    rows, following = await list_page(unit, ApiKey, Listing(limit, cursor, sort))
    return Page(items=[show_api_key(row) for row in rows], next_cursor=following)


@router.post(
    "/api-keys",
    dependencies=_WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Make an API key",
)
async def create_api_key(unit: Unit, wanted: ApiKeyInput, response: Response) -> ApiKeyCreated:
    """A new API key. Its token is in this answer and nowhere else."""
    key, token = await service.create_api_key(unit, wanted)
    shown = show_api_key(key)
    response.headers["location"] = f"/v1/api-keys/{shown.id}"
    put_etag(response, key.version)
    return ApiKeyCreated(**shown.model_dump(), token=token.text)


@router.get("/api-keys/{api_key_id}", dependencies=_READ, summary="Get an API key")
async def get_api_key(unit: Unit, api_key_id: str, response: Response) -> ApiKeyOutput:
    """One API key, without its secret."""
    key = await service.get_api_key(unit, api_key_id)
    put_etag(response, key.version)
    return show_api_key(key)


@router.post("/api-keys/{api_key_id}:revoke", dependencies=_WRITE, summary="Revoke an API key")
async def revoke_api_key(unit: Unit, api_key_id: str, response: Response) -> ApiKeyOutput:
    """End a key at once and for good; never delayed."""
    key = await service.get_api_key(unit, api_key_id)
    await service.revoke_api_key(unit, key)
    put_etag(response, key.version)
    return show_api_key(key)
