"""A tenant's issuer: configured, proven by a login through it, enforced, relaxed, removed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update

from app.database.sessions import TenantSession
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.grants import is_administrator, load_grants, resolve_grants
from app.kit.ids import Kind, show
from app.kit.problems import Problem, not_found
from app.kit.sealing import Sealer
from app.models import Issuer, User, UserSession
from app.models.base import key_of
from app.models.identity import UserState
from app.oidc.schemas import IssuerInput
from app.outbound.policy import OutboundRefused, check_url

_SECRET_CONTEXT = "issuers.client_secret"  # noqa: S105 - a context
#: Whoever changes one of these could be at another issuer.
_CONNECTION = ("url", "client_id", "client_secret")


async def find_issuer(session: TenantSession, *, lock: bool = False) -> Issuer | None:
    """The tenant's issuer, if it has one."""
    return await session.orm.get(Issuer, session.tenant_id, with_for_update=lock or None)


async def get_issuer(unit: TenantUnit, *, lock: bool = False) -> Issuer:
    """The tenant's issuer; Problem `not_found`."""
    issuer = await find_issuer(unit.session, lock=lock)
    if issuer is None:
        raise not_found()
    return issuer


async def put_issuer(unit: TenantUnit, issuer: Issuer | None, wanted: IssuerInput) -> Issuer:
    """Configure the tenant's issuer. Everybody who came through it has to come again. Problems
    `invalid_fields`, `illegal_transition` where an enforced one would become another.
    """
    _check(unit, wanted)
    values = await _values(unit, wanted, issuer)
    if issuer is None:
        issuer = Issuer(
            tenant_id=unit.session.tenant_id,
            created_at=unit.now,
            version=1,
            enforced_at=None,
            break_glass_id=None,
            **values,
        )
        unit.session.orm.add(issuer)
        unit.note("issuer.configured", _subject(unit), url=issuer.url, changed=sorted(values))
        return issuer
    changed = sorted(name for name, value in values.items() if getattr(issuer, name) != value)
    if issuer.enforced_at is not None and set(changed) & set(_CONNECTION):
        raise Problem(
            "illegal_transition",
            "An issuer that is enforced does not become another.",
            hint="`:relax` first, prove the new settings by a login, then `:enforce` again.",
        )
    if changed:
        for name in changed:
            setattr(issuer, name, values[name])
        issuer.version += 1
        await _end_sessions(unit)
        unit.note("issuer.configured", _subject(unit), url=issuer.url, changed=changed)
    return issuer


def _check(unit: TenantUnit, wanted: IssuerInput) -> None:
    if not unit.tools.public_url:
        raise Problem(
            "settings_refused",
            "This deployment does not say by which address browsers reach it.",
            hint="Ask the provider to set HOLDFAST_API_URL.",
        )
    try:
        url = check_url(wanted.url, unit.tools.issuers.policy)
    except OutboundRefused as error:
        raise _wrong("url", error.message) from None
    if url.query:
        raise _wrong("url", "An issuer has no query.")


def _wrong(field: str, message: str) -> Problem:
    named = {"field": f"body.{field}", "message": message}
    return Problem("invalid_fields", hint="Mend the fields that are listed.", errors=[named])


async def _values(unit: TenantUnit, wanted: IssuerInput, issuer: Issuer | None) -> dict[str, Any]:
    await resolve_grants(unit, wanted.mappings)
    secret = wanted.client_secret
    if secret is None and issuer is None:
        raise _wrong("client_secret", "A new issuer needs its secret.")
    values = wanted.model_dump(include={"url", "client_id", "scopes", "groups_claim"})
    values["mappings"] = [one.model_dump(mode="json") for one in wanted.mappings]
    is_same = issuer is not None and (
        secret is None or secret.get_secret_value() == open_secret(unit.tools.sealer, issuer)
    )
    if not is_same:
        assert secret is not None
        values["client_secret"] = unit.tools.sealer.seal(
            secret.get_secret_value().encode(), _SECRET_CONTEXT, _subject(unit)
        )
    return values


def open_secret(sealer: Sealer, issuer: Issuer) -> str:
    """The client's secret as the issuer gave it."""
    tenant = show(Kind.TENANT, issuer.tenant_id)
    return sealer.open(issuer.client_secret, _SECRET_CONTEXT, tenant).decode()


async def enforce_issuer(unit: TenantUnit, issuer: Issuer, user_id: str) -> None:
    """Refuse local logins of everybody but one administrator, and end their sessions. Whoever asks
    for it has come through the issuer as it is configured now: Problem `issuer_not_tested`. Problem
    `illegal_transition` for an account that could not open the door again.
    """
    await _check_tested(unit, issuer)
    user = await find(unit, User, Kind.USER, user_id, lock=True)
    grants = (await load_grants(unit.session, [user]))[user.id]
    is_local = user.issuer is None and user.state == UserState.ACTIVE
    if not is_local or not is_administrator(grants):
        raise Problem(
            "illegal_transition",
            f"{user.name} is not an active local administrator of the whole tenant.",
            hint="Invite one, have the invitation accepted, then name that account.",
        )
    if issuer.enforced_at is not None and issuer.break_glass_id == user.id:
        return
    issuer.enforced_at = issuer.enforced_at or unit.now
    issuer.break_glass_id = user.id
    issuer.version += 1
    await _carry_over(unit, issuer)
    await _end_sessions(unit, of_issuer=False, but=user)
    told = {"url": issuer.url, "break_glass": show(Kind.USER, user.id)}
    unit.note("issuer.enforced", _subject(unit), **told)


async def _check_tested(unit: TenantUnit, issuer: Issuer) -> None:
    session_id, row = unit.principal.session_id, None
    if session_id is not None:
        key = key_of(unit.session.tenant_id, session_id)
        row = await unit.session.orm.get(UserSession, key)
    if row is None or row.issuer_version != issuer.version:
        raise Problem(
            "issuer_not_tested",
            "Nobody knows yet that the issuer lets an administrator in.",
            hint="Log in through the issuer as it is configured now, then ask for it again.",
        )


async def _carry_over(unit: TenantUnit, issuer: Issuer) -> None:
    """Sessions through the settings before stay proof: nothing of how one comes in has changed."""
    rows = update(UserSession).where(
        UserSession.tenant_id == unit.session.tenant_id,
        UserSession.issuer_version == issuer.version - 1,
    )
    await unit.session.orm.execute(rows.values(issuer_version=issuer.version))


async def relax_issuer(unit: TenantUnit, issuer: Issuer) -> None:
    """Allow local logins again. Repeats change nothing."""
    if issuer.enforced_at is not None:
        issuer.enforced_at = issuer.break_glass_id = None
        issuer.version += 1
        await _carry_over(unit, issuer)
        unit.note("issuer.relaxed", _subject(unit), url=issuer.url)


async def delete_issuer(unit: TenantUnit, issuer: Issuer) -> None:
    """Forget an issuer and end the sessions that came through it; Problem `illegal_transition` for
    one that is enforced.
    """
    if issuer.enforced_at is not None:
        raise Problem("illegal_transition", "The issuer is enforced.", hint="`:relax` it before.")
    await _end_sessions(unit)
    await unit.session.orm.delete(issuer)
    unit.note("issuer.deleted", _subject(unit), url=issuer.url)


async def _end_sessions(
    unit: TenantUnit, *, of_issuer: bool = True, but: User | None = None
) -> None:
    came = UserSession.issuer_version
    rows = update(UserSession).where(
        UserSession.tenant_id == unit.session.tenant_id,
        UserSession.ended_at.is_(None),
        came.is_not(None) if of_issuer else came.is_(None),
    )
    if but is not None:
        rows = rows.where(UserSession.user_id != but.id)
    await unit.session.orm.execute(rows.values(ended_at=unit.now))


def _subject(unit: TenantUnit) -> str:
    return show(Kind.TENANT, unit.session.tenant_id)
