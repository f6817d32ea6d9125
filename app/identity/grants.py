"""Grants: who has which role over what. Nobody gives what he does not have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select

from app.database.sessions import TenantSession
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.principals import granted_of
from app.identity.privileges import Role
from app.identity.schemas import GrantInput, GrantOutput
from app.identity.scopes import Granted, Place
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem, not_found
from app.models import ApiKey, Grant, Site, User, Vpg
from app.models.identity import UserState

Owner = User | ApiKey


async def resolve_grants(unit: TenantUnit, wanted: Iterable[GrantInput]) -> list[Granted]:
    """What is to be granted, each once; Problem `not_found` for a scope that the caller does not
    see, `privilege_missing` for what the caller does not have there.
    """
    found = list(dict.fromkeys([await _resolve(unit, one) for one in wanted]))
    await check_may_grant(unit, found)
    return found


async def _resolve(unit: TenantUnit, wanted: GrantInput) -> Granted:
    tenant, scope = show(Kind.TENANT, unit.session.tenant_id), wanted.scope
    if scope is None or scope == tenant:
        return Granted(wanted.role)
    if scope.startswith(f"{Kind.SITE}_"):
        site = await find(unit, Site, Kind.SITE, scope)
        return Granted(wanted.role, Place(site_id=site.id))
    if scope.startswith(f"{Kind.VPG}_"):
        vpg = await find(unit, Vpg, Kind.VPG, scope)
        return Granted(wanted.role, Place(vpg_id=vpg.id))
    raise not_found()


async def check_may_grant(unit: TenantUnit, wanted: Sequence[Granted]) -> None:
    """Problem `privilege_missing` unless the caller has all that these grants give, where they give
    it. One query.
    """
    keys = sorted(one.place.vpg_id for one in wanted if one.place.vpg_id is not None)
    rows = await unit.session.orm.execute(
        select(Vpg.id, Vpg.protected_site_id).where(
            Vpg.tenant_id == unit.session.tenant_id, Vpg.id.in_(keys)
        )
    )
    sites: Mapping[UUID, UUID | None] = {row[0]: row[1] for row in rows}
    for one in wanted:
        place = one.place
        if place.vpg_id is not None:
            place = Place(sites.get(place.vpg_id), place.vpg_id)
        for privilege in sorted(one.privileges):
            unit.principal.require_at(privilege, place)


async def load_grants(session: TenantSession, owners: Sequence[Owner]) -> dict[UUID, list[Granted]]:
    """What each of these people or API keys was granted; one query."""
    ids = [owner.id for owner in owners]
    found = await session.orm.scalars(
        select(Grant)
        .where(
            Grant.tenant_id == session.tenant_id, Grant.user_id.in_(ids) | Grant.api_key_id.in_(ids)
        )
        .order_by(Grant.role, Grant.site_id, Grant.vpg_id)
    )
    by_owner: dict[UUID, list[Granted]] = defaultdict(list)
    for grant in found:
        by_owner[grant.user_id or grant.api_key_id].append(granted_of(grant))  # type: ignore[index]
    return by_owner


def show_grants(tenant_id: UUID, grants: Iterable[Granted]) -> list[GrantOutput]:
    """As the API shows them."""
    return [GrantOutput(role=one.role, scope=show_scope(tenant_id, one.place)) for one in grants]


def show_scope(tenant_id: UUID, place: Place) -> str:
    """A scope as users see it: the id of the site, the group or the tenant."""
    if place.vpg_id is not None:
        return show(Kind.VPG, place.vpg_id)
    if place.site_id is not None:
        return show(Kind.SITE, place.site_id)
    return show(Kind.TENANT, tenant_id)


def add_grants(session: TenantSession, owner: Owner, grants: Iterable[Granted]) -> None:
    """Enter grants of somebody new."""
    owned = "user_id" if isinstance(owner, User) else "api_key_id"
    for one in grants:
        session.orm.add(
            Grant(
                tenant_id=session.tenant_id,
                id=new_uuid(owner.created_at),
                role=one.role,
                site_id=one.place.site_id,
                vpg_id=one.place.vpg_id,
                **{owned: owner.id},
            )
        )


async def replace_grants(
    unit: TenantUnit, owner: Owner, wanted: Sequence[Granted]
) -> tuple[list[Granted], bool]:
    """Give somebody these grants and no others: what there was, and whether anything changed."""
    before = (await load_grants(unit.session, [owner]))[owner.id]
    if set(before) == set(wanted):
        return before, False
    column = Grant.user_id if isinstance(owner, User) else Grant.api_key_id
    await unit.session.orm.execute(
        delete(Grant).where(Grant.tenant_id == unit.session.tenant_id, column == owner.id)
    )
    add_grants(unit.session, owner, wanted)
    owner.version += 1
    return before, True


def told(tenant_id: UUID, grants: Iterable[Granted]) -> list[str]:
    """Grants for an event: `ROLE over SCOPE`."""
    return [f"{one.role} over {show_scope(tenant_id, one.place)}" for one in grants]


def is_administrator(grants: Iterable[Granted]) -> bool:
    """Whether somebody with these can administer the tenant."""
    return Granted(Role.ADMINISTRATOR) in set(grants)


async def check_stays(unit: TenantUnit, owner: Owner, wanted: Iterable[Granted]) -> None:
    """Problem `last_administrator` if with these grants nobody could administer any more."""
    if not is_administrator(wanted):
        await check_not_last(unit, owner)


async def check_not_last(unit: TenantUnit, owner: Owner) -> None:
    """Problem `last_administrator` if this is an active administrator and there is no other."""
    administrators = await _administrators(unit)
    if owner.id in administrators and len(administrators) <= 1:
        raise Problem(
            "last_administrator",
            "This is the last administrator.",
            hint="Make another one first.",
        )


async def _administrators(unit: TenantUnit) -> set[UUID]:
    """API keys and local accounts that can administer the tenant now, read under locks against
    ending the last two at once. Whoever comes through the issuer can when it answers.
    """
    is_whole = (Grant.role == Role.ADMINISTRATOR) & Grant.site_id.is_(None) & Grant.vpg_id.is_(None)
    tenant_id = unit.session.tenant_id
    keys = (
        select(ApiKey.id)
        .join(Grant, _of(Grant.api_key_id, ApiKey) & is_whole)
        .where(
            ApiKey.tenant_id == tenant_id,
            ApiKey.revoked_at.is_(None),
            func.coalesce(ApiKey.expires_at > unit.now, True),
        )
        .order_by(ApiKey.id)
        .with_for_update(of=ApiKey)
    )
    people = (
        select(User.id)
        .join(Grant, _of(Grant.user_id, User) & is_whole)
        .where(User.tenant_id == tenant_id, User.state == UserState.ACTIVE, User.issuer.is_(None))
        .order_by(User.id)
        .with_for_update(of=User)
    )
    found: set[UUID] = set()
    for query in (keys, people):
        found |= set((await unit.session.orm.scalars(query)).all())
    return found


def _of(column: object, model: type[ApiKey] | type[User]) -> ColumnElement[bool]:
    return (Grant.tenant_id == model.tenant_id) & (model.id == column)
