"""People of a tenant, and their sessions."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from app.http.unit import TenantUnit
from app.identity.privileges import Role
from app.identity.service import count_administrators
from app.identity.tokens import INVITATION, SESSION, Token, make_token
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.models import User, UserSession
from app.models.base import key_of
from app.models.identity import UserState
from app.users.entering import SESSION_MAX, seal_code, used_step
from app.users.passwords import hash_password, make_code_secret
from app.users.schemas import AcceptInput, UserInput

INVITATION_LIFETIME = timedelta(hours=72)


async def get_user(unit: TenantUnit, user_id: str) -> User:
    """The tenant's person; Problem `not_found` for every other id."""
    try:
        key = parse(Kind.USER, user_id)
    except BadId:
        raise not_found() from None
    found = await unit.session.orm.get(User, key_of(unit.session.tenant_id, key))
    if found is None:
        raise not_found()
    return found


async def invite_user(unit: TenantUnit, wanted: UserInput) -> tuple[User, Token]:
    """A new account, and the invitation to it; Problem `name_taken`."""
    user = User(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        name=wanted.name,
        display_name=wanted.display_name,
        role=wanted.role,
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
    unit.note("users.invited", show(Kind.USER, user.id), name=user.name, role=user.role)
    return user, token


async def reset_user(unit: TenantUnit, user: User) -> Token:
    """A new invitation for somebody who lost password or authenticator. Ends their sessions."""
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
    """Shut a person out and end their sessions. Repeats change nothing."""
    if user.state == UserState.DISABLED:
        return
    is_last = user.state == UserState.ACTIVE and user.role == Role.ADMINISTRATOR
    if is_last and await count_administrators(unit) <= 1:
        raise Problem(
            "last_administrator",
            "This is the last administrator.",
            hint="Make another one first.",
        )
    user.state, user.invitation = UserState.DISABLED, None
    user.version += 1
    await _end_sessions(unit, user)
    unit.note("users.disabled", show(Kind.USER, user.id), name=user.name)


async def begin_session(unit: TenantUnit) -> tuple[Token, datetime]:
    """A session of the person who logged in: its token and its end."""
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
    )
    unit.session.orm.add(row)
    unit.note("users.logged_in", unit.principal.actor)
    unit.shows_secret = unit.principal.actor
    return token, unit.now + SESSION_MAX


async def step_up(unit: TenantUnit, code: str | None) -> None:
    """Of a person in a session: a one-time code that was not used; Problem `step_up_required`.

    Other callers have nothing to step up to: their credential is all that they are.
    """
    if unit.principal.session_id is None:
        return
    user = await unit.session.orm.get_one(
        User, key_of(unit.session.tenant_id, unit.principal.id), with_for_update=True
    )
    step = used_step(unit.tools.sealer, user, code or "", unit.now)
    if step is None:
        raise Problem("step_up_required", hint="Send the newest code of your authenticator.")
    user.totp_step = step


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
