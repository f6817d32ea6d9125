"""Accounts of an issuer: (tenant, issuer, subject), and what their groups are granted."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.http.unit import TenantUnit
from app.identity.grants import replace_grants, told
from app.identity.privileges import Role
from app.identity.scopes import Granted, Place
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.models import Issuer, Site, User, Vpg
from app.models.identity import UserState
from app.oidc.identity import Identity

_NAME_LENGTH_MAX = 80
_NAMES = ("name", "preferred_username", "email")


async def open_account(
    session: TenantSession, identity: Identity, now: datetime
) -> tuple[User, bool]:
    """The account of this subject, locked, and whether it was made by this, its first login. Its
    name is its id: what the issuer calls somebody is only shown.
    """
    key = new_uuid(now)
    entry = insert(User).values(
        tenant_id=session.tenant_id,
        id=key,
        created_at=now,
        version=1,
        name=show(Kind.USER, key),
        display_name=_shown_name(identity),
        state=UserState.ACTIVE,
        totp_step=0,
        failures=0,
        issuer=identity.issuer,
        subject=identity.subject,
    )
    keys = ["tenant_id", "issuer", "subject"]
    entered = await session.orm.execute(
        entry.on_conflict_do_nothing(index_elements=keys).returning(User.id)
    )
    is_new = entered.first() is not None
    found = await session.orm.scalars(
        select(User)
        .where(
            User.tenant_id == session.tenant_id,
            User.issuer == identity.issuer,
            User.subject == identity.subject,
        )
        .with_for_update()
    )
    return found.one(), is_new


def note_account(unit: TenantUnit, user: User) -> None:
    """Somebody came through the issuer for the first time."""
    told = {"issuer": user.issuer, "issuers_subject": user.subject}
    unit.note("users.made", show(Kind.USER, user.id), **told)


def _shown_name(identity: Identity) -> str:
    for claim in _NAMES:
        told = identity.claims.get(claim)
        if isinstance(told, str):
            clean = unicodedata.normalize("NFC", told)
            shown = "".join(letter for letter in clean if letter.isprintable()).strip()
            if shown:
                return shown[:_NAME_LENGTH_MAX]
    return identity.subject[:_NAME_LENGTH_MAX]


async def grants_of(session: TenantSession, issuer: Issuer, groups: Iterable[str]) -> list[Granted]:
    """What these groups are granted, by what the tenant still has. Two queries."""
    inside = set(groups)
    wanted = [_granted(session.tenant_id, one) for one in issuer.mappings if one["group"] in inside]
    found = list(dict.fromkeys(one for one in wanted if one is not None))
    sites = await _present(session, Site, [one.place.site_id for one in found])
    vpgs = await _present(session, Vpg, [one.place.vpg_id for one in found])
    return [one for one in found if {one.place.site_id, one.place.vpg_id} <= sites | vpgs | {None}]


def _granted(tenant_id: UUID, mapping: dict[str, str | None]) -> Granted | None:
    role, scope = Role(str(mapping["role"])), mapping["scope"]
    if scope is None or scope == show(Kind.TENANT, tenant_id):
        return Granted(role)
    try:
        if scope.startswith(f"{Kind.SITE}_"):
            return Granted(role, Place(site_id=parse(Kind.SITE, scope)))
        return Granted(role, Place(vpg_id=parse(Kind.VPG, scope)))
    except BadId:
        return None


async def _present(
    session: TenantSession, model: type[Site] | type[Vpg], keys: Sequence[UUID | None]
) -> set[UUID]:
    wanted = sorted(key for key in keys if key is not None)
    found = await session.orm.scalars(
        select(model.id).where(model.tenant_id == session.tenant_id, model.id.in_(wanted))
    )
    return set(found)


async def settle_account(
    unit: TenantUnit, user: User, identity: Identity, grants: Sequence[Granted]
) -> None:
    """Name and grants are what the issuer says now."""
    shown = show(Kind.USER, user.id)
    user.display_name = _shown_name(identity)
    before, is_changed = await replace_grants(unit, user, grants)
    if is_changed:
        changes = [told(user.tenant_id, before), told(user.tenant_id, grants)]
        unit.note("users.granted", shown, name=user.display_name, grants=changes)
