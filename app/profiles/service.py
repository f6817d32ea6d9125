"""Service profiles of a tenant."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.models import ServiceProfile
from app.profiles.schemas import ProfileInput


async def get_profile(unit: TenantUnit, profile_id: str) -> ServiceProfile:
    """The tenant's service profile; Problem `not_found` for every other id."""
    return await find(unit, ServiceProfile, Kind.SERVICE_PROFILE, profile_id)


async def create_profile(unit: TenantUnit, wanted: ProfileInput) -> ServiceProfile:
    """Make a service profile; Problem `name_taken`."""
    profile = ServiceProfile(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        **wanted.model_dump(mode="json"),
    )
    unit.session.orm.add(profile)
    await _flush(unit, wanted.name)
    unit.note("service_profiles.created", show(Kind.SERVICE_PROFILE, profile.id), name=profile.name)
    return profile


async def replace_profile(unit: TenantUnit, profile: ServiceProfile, wanted: ProfileInput) -> None:
    """Give a service profile these settings; Problem `name_taken`."""
    after = wanted.model_dump(mode="json")
    changes = {
        name: [getattr(profile, name), value]
        for name, value in after.items()
        if getattr(profile, name) != value
    }
    if not changes:
        return
    for name, value in after.items():
        setattr(profile, name, value)
    profile.version += 1
    await _flush(unit, wanted.name)
    shown = show(Kind.SERVICE_PROFILE, profile.id)
    unit.note("service_profiles.changed", shown, changes=changes)


async def delete_profile(unit: TenantUnit, profile: ServiceProfile) -> None:
    """Remove a service profile; Problem `in_use` while a group names it."""
    name, shown = profile.name, show(Kind.SERVICE_PROFILE, profile.id)
    await unit.session.orm.delete(profile)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem(
            "in_use",
            f"A group was made from the profile {name}.",
            hint="Give those groups another profile, or none.",
        ) from None
    unit.note("service_profiles.deleted", shown, name=name)


async def _flush(unit: TenantUnit, name: str) -> None:
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a service profile named {name} already.") from None
