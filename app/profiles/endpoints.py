"""`/v1/service-profiles`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response, status

from app.http.etags import check_etag, put_etag
from app.http.listing import Asked, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.models import ServiceProfile
from app.profiles import service
from app.profiles.schemas import ProfileInput, ProfileOutput
from app.vpgs.settings import Settings

router = tenant_router("service-profiles")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.SERVICE_PROFILES_READ)]
_WRITE = [requires(Privilege.SERVICE_PROFILES_WRITE)]
_PATH = "/service-profiles"


def _show(profile: ServiceProfile) -> ProfileOutput:
    return ProfileOutput(
        id=show(Kind.SERVICE_PROFILE, profile.id),
        name=profile.name,
        description=profile.description,
        settings=Settings(**profile.settings),
        created_at=profile.created_at,
    )


@router.get(_PATH, dependencies=_READ, summary="List service profiles")
async def list_service_profiles(unit: Unit, asked: Asked) -> Page[ProfileOutput]:
    """The tenant's service profiles, sorted, a page at a time."""
    rows, following = await list_page(unit, ServiceProfile, asked)
    return Page(items=[_show(row) for row in rows], next_cursor=following)


@router.post(
    _PATH,
    dependencies=_WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Make a service profile",
)
async def create_service_profile(
    unit: Unit, wanted: ProfileInput, response: Response
) -> ProfileOutput:
    """Settings under a name, from which groups are made."""
    profile = await service.create_profile(unit, wanted)
    shown = _show(profile)
    response.headers["location"] = f"/v1{_PATH}/{shown.id}"
    put_etag(response, profile.version)
    return shown


@router.get(_PATH + "/{service_profile_id}", dependencies=_READ, summary="Get a service profile")
async def get_service_profile(
    unit: Unit, service_profile_id: str, response: Response
) -> ProfileOutput:
    """One service profile, with its ETag."""
    profile = await service.get_profile(unit, service_profile_id)
    put_etag(response, profile.version)
    return _show(profile)


@router.put(
    _PATH + "/{service_profile_id}", dependencies=_WRITE, summary="Replace a service profile"
)
async def replace_service_profile(
    unit: Unit,
    service_profile_id: str,
    wanted: ProfileInput,
    request: Request,
    response: Response,
) -> ProfileOutput:
    """All of it at once; If-Match says which version is meant. Groups stay as they are."""
    profile = await service.get_profile(unit, service_profile_id)
    check_etag(request, profile.version)
    await service.replace_profile(unit, profile, wanted)
    put_etag(response, profile.version)
    return _show(profile)


@router.delete(
    _PATH + "/{service_profile_id}",
    dependencies=_WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove a service profile",
)
async def delete_service_profile(unit: Unit, service_profile_id: str, request: Request) -> None:
    """Remove a service profile that no group names; If-Match says which version is meant."""
    profile = await service.get_profile(unit, service_profile_id)
    check_etag(request, profile.version)
    await service.delete_profile(unit, profile)
