"""Sites of a tenant."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.models import Site
from app.rights.violations import review
from app.sites.schemas import SiteInput, SiteOutput


async def get_site(unit: TenantUnit, site_id: str) -> Site:
    """The tenant's site; Problem `not_found` for every other id."""
    return await find(unit, Site, Kind.SITE, site_id)


async def create_site(unit: TenantUnit, wanted: SiteInput) -> Site:
    """Make a site; Problem `name_taken`."""
    site = Site(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        **wanted.model_dump(),
    )
    unit.session.orm.add(site)
    await _flush(unit, wanted.name)
    unit.note("sites.created", show(Kind.SITE, site.id), name=site.name, territory=site.territory)
    return site


def show_site(site: Site) -> SiteOutput:
    """As the API shows it."""
    return SiteOutput(
        id=show(Kind.SITE, site.id),
        name=site.name,
        territory=site.territory,
        description=site.description,
        pool_id=show(Kind.POOL, site.pool_id) if site.pool_id else None,
        created_at=site.created_at,
    )


async def replace_site(unit: TenantUnit, site: Site, wanted: SiteInput) -> Site:
    """Give a site these settings; Problems `name_taken`, `illegal_transition`."""
    _check_own(site)
    before = {"name": site.name, "territory": site.territory, "description": site.description}
    after = wanted.model_dump()
    if before != after:
        for name, value in after.items():
            setattr(site, name, value)
        site.version += 1
        await _flush(unit, wanted.name)
        changes = {
            name: [before[name], after[name]] for name in after if before[name] != after[name]
        }
        unit.note("sites.changed", show(Kind.SITE, site.id), changes=changes)
        if "territory" in changes:
            unit.happenings += await review(unit.session, unit.now)
    return site


async def delete_site(unit: TenantUnit, site: Site) -> None:
    """Remove a site; Problems `in_use`, `illegal_transition`."""
    _check_own(site)
    name, shown = site.name, show(Kind.SITE, site.id)
    await unit.session.orm.delete(site)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("in_use", f"Hosts, groups or grants name {name}.") from None
    unit.note("sites.deleted", shown, name=name)


def _check_own(site: Site) -> None:
    if site.pool_id is not None:
        raise Problem(
            "illegal_transition",
            f"{site.name} is a pool of the provider's.",
            hint="The provider changes it.",
        )


async def _flush(unit: TenantUnit, name: str) -> None:
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a site named {name} already.") from None
