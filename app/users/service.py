"""People of a tenant, and their sessions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.grants import (
    add_grants,
    check_may_grant,
    check_not_last,
    check_stays,
    is_administrator,
    load_grants,
    replace_grants,
    told,
)
from app.identity.scopes import Granted
from app.identity.tokens import INVITATION, SESSION, Token, make_token
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.models import Issuer, User, UserSession
from app.models.base import key_of
from app.models.identity import UserState
from app.users.entering import SESSION_MAX, seal_code, used_step
from app.users.passwords import hash_password, make_code_secret
from app.users.schemas import AcceptInput, UserInput

INVITATION_LIFETIME = timedelta(hours=72)
#: So long a login through an issuer counts as a one-time code does.
FRESH_MAX = timedelta(minutes=5)


async def get_user(unit: TenantUnit, user_id: str, *, lock: bool = False) -> User:
    """The tenant's person; Problem `not_found` for every other id."""
    return await find(unit, User, Kind.USER, user_id, lock=lock)


async def invite_user(
    unit: TenantUnit, wanted: UserInput, grants: Sequence[Granted]
) -> tuple[User, Token]:
    """A new account with these grants, and the invitation to it; Problem `name_taken`."""
    user = User(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        name=wanted.name,
        display_name=wanted.display_name,
        state=UserState.INVITED,
        password_hash=None,
        totp_secret=None,
        totp_step=0,
        failures=0,
        locked_until=None,
    )
    token = _invite(unit, user)
    unit.session.orm.add(user)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a user named {wanted.name} already.") from None
    add_grants(unit.session, user, grants)
    given = told(user.tenant_id, grants)
    unit.note("users.invited", show(Kind.USER, user.id), name=user.name, grants=given)
    return user, token


async def grant_user(unit: TenantUnit, user: User, wanted: Sequence[Granted]) -> None:
    """Give a person these grants and no others, which ends their sessions; Problems
    `last_administrator`, `illegal_transition` for one whose groups at the issuer decide, `in_use`.
    """
    check_local(user)
    if not is_administrator(wanted):
        await _check_not_break_glass(unit, user)
    await check_stays(unit, user, wanted)
    before, is_changed = await replace_grants(unit, user, wanted)
    if is_changed:
        await _end_sessions(unit, user)
        changes = [told(user.tenant_id, before), told(user.tenant_id, wanted)]
        unit.note("users.granted", show(Kind.USER, user.id), name=user.name, grants=changes)


async def reset_user(unit: TenantUnit, user: User) -> Token:
    """A new invitation for somebody who lost password or authenticator. Ends their sessions.
    Whoever gets the invitation gets the account: Problem `privilege_missing` as for a grant;
    `illegal_transition` for an account of the issuer.
    """
    check_local(user)
    await check_may_grant(unit, (await load_grants(unit.session, [user]))[user.id])
    token = _invite(unit, user)
    user.state, user.password_hash, user.totp_secret = UserState.INVITED, None, None
    user.failures, user.locked_until = 0, None
    await _end_sessions(unit, user)
    unit.note("users.reset", show(Kind.USER, user.id), name=user.name)
    return token


def _invite(unit: TenantUnit, user: User) -> Token:
    token = make_token(unit.session.tenant_id, user.id, INVITATION)
    user.invitation = token.fingerprint(unit.tools.sealer)
    user.invitation_expires_at = unit.now + INVITATION_LIFETIME
    unit.shows_secret = show(Kind.USER, user.id)
    return token


async def accept_invitation(unit: TenantUnit, wanted: AcceptInput) -> tuple[User, str]:
    """The account with its password; also the new secret of its one-time codes."""
    user = await unit.session.orm.get_one(User, key_of(unit.session.tenant_id, unit.principal.id))
    secret, shown = make_code_secret(), show(Kind.USER, user.id)
    user.password_hash = await hash_password(wanted.password.get_secret_value())
    user.totp_secret, user.totp_step = seal_code(unit.tools.sealer, shown, secret), 0
    user.state = UserState.ACTIVE
    user.version += 1
    unit.note("users.accepted", shown, name=user.name)
    unit.shows_secret = shown
    return user, secret


async def disable_user(unit: TenantUnit, user: User) -> None:
    """Shut a person out and end their sessions. Repeats change nothing. Problems
    `last_administrator`, `in_use`.
    """
    if user.state == UserState.DISABLED:
        return
    await _check_not_break_glass(unit, user)
    await check_not_last(unit, user)
    user.state, user.invitation = UserState.DISABLED, None
    user.version += 1
    await _end_sessions(unit, user)
    unit.note("users.disabled", show(Kind.USER, user.id), name=user.name)


def check_local(user: User) -> None:
    """Problem `illegal_transition` for an account of the issuer."""
    if user.issuer is not None:
        raise Problem(
            "illegal_transition",
            f"{user.display_name} comes through the tenant's issuer.",
            hint="Change the person's groups there, or what groups are granted here.",
        )


async def _check_not_break_glass(unit: TenantUnit, user: User) -> None:
    issuer = await unit.session.orm.get(Issuer, unit.session.tenant_id)
    if issuer is not None and issuer.enforced_at is not None and issuer.break_glass_id == user.id:
        raise Problem(
            "in_use",
            f"{user.name} is the one account that may log in locally.",
            hint="Enforce the issuer with another one first, or relax it.",
        )


async def begin_session(
    unit: TenantUnit, issuer_version: int | None = None, authenticated_at: datetime | None = None
) -> tuple[Token, datetime]:
    """A session of the person who logged in: its token and its end. Through an issuer: with which
    of its settings, and when it says that the person proved who they are.
    """
    token = make_token(unit.session.tenant_id, new_uuid(unit.now), SESSION)
    row = UserSession(
        tenant_id=unit.session.tenant_id,
        id=token.id,
        created_at=unit.now,
        version=1,
        user_id=unit.principal.id,
        fingerprint=token.fingerprint(unit.tools.sealer),
        seen_at=unit.now,
        ended_at=None,
        issuer_version=issuer_version,
        authenticated_at=authenticated_at,
    )
    unit.session.orm.add(row)
    unit.note("users.logged_in", unit.principal.actor)
    unit.shows_secret = unit.principal.actor
    return token, unit.now + SESSION_MAX


async def step_up(unit: TenantUnit, code: str | None) -> None:
    """Of a person in a session: a one-time code that was not used, or of one who came through the
    issuer, that they did so just now; Problem `step_up_required`.

    Other callers have nothing to step up to: their credential is all that they are.
    """
    if unit.principal.session_id is None:
        return
    user = await unit.session.orm.get_one(
        User, key_of(unit.session.tenant_id, unit.principal.id), with_for_update=True
    )
    if user.issuer is not None:
        await _check_fresh(unit, unit.principal.session_id)
        return
    step = used_step(unit.tools.sealer, user, code or "", unit.now)
    if step is None:
        raise Problem("step_up_required", hint="Send the newest code of your authenticator.")
    user.totp_step = step


async def _check_fresh(unit: TenantUnit, session_id: UUID) -> None:
    row = await unit.session.orm.get_one(UserSession, key_of(unit.session.tenant_id, session_id))
    proven = row.authenticated_at
    if proven is None or unit.now - proven > FRESH_MAX:
        minutes = int(FRESH_MAX.total_seconds() // 60)
        raise Problem(
            "step_up_required",
            f"The issuer does not say that you proved who you are in the last {minutes} minutes.",
            hint="Log out at the issuer, log in again, then repeat this at once.",
        )


async def end_session(unit: TenantUnit) -> None:
    """Log out. For a caller without a session nothing changes."""
    if unit.principal.session_id is not None:
        key = key_of(unit.session.tenant_id, unit.principal.session_id)
        row = await unit.session.orm.get_one(UserSession, key)
        row.ended_at = unit.now
        unit.note("users.logged_out", unit.principal.actor)


async def _end_sessions(unit: TenantUnit, user: User) -> None:
    open_ones = update(UserSession).where(
        UserSession.tenant_id == user.tenant_id,
        UserSession.user_id == user.id,
        UserSession.ended_at.is_(None),
    )
    await unit.session.orm.execute(open_ones.values(ended_at=unit.now))
