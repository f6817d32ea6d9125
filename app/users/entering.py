"""How people come in: by an invitation once, by password and code, by a session's token.

Whatever is wrong has one answer and takes as long. Guessing locks the account for a while that
doubles; the owner of a locked account is told no more than the guesser.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, update

from app.database.sessions import Database, TenantSession
from app.events.ledger import Act, Circumstances, write_ledger
from app.identity.grants import load_grants
from app.identity.principals import Principal, principal_of, refused
from app.identity.privileges import Privilege
from app.identity.tokens import Token
from app.kit.ids import Kind, show
from app.kit.sealing import Sealer
from app.models import Issuer, Tenant, User, UserSession
from app.models.base import key_of
from app.models.identity import UserState
from app.models.tenants import TenantState
from app.users.passwords import is_password, step_of_code
from app.users.schemas import LoginInput

IDLE_MAX, SESSION_MAX = timedelta(minutes=30), timedelta(hours=12)
_FREE_FAILURES = 5
_LOCK_SECONDS_MAX = 900
#: `seen_at` is written at most so often.
_SEEN_GRAIN = timedelta(minutes=1)
_CODE_CONTEXT = "users.totp_secret"


def seal_code(sealer: Sealer, user_id: str, secret: str) -> bytes:
    """The one-time codes' secret as it is kept."""
    return sealer.seal(secret.encode(), _CODE_CONTEXT, user_id)


def used_step(sealer: Sealer, user: User, code: str, now: datetime) -> int | None:
    """The step whose code this is, if it is one of the user's that was not used; or None."""
    assert user.totp_secret is not None
    secret = sealer.open(user.totp_secret, _CODE_CONTEXT, show(Kind.USER, user.id)).decode()
    return step_of_code(secret, code, now, user.totp_step)


async def authenticate_invitation(
    session: TenantSession, token: Token, sealer: Sealer, now: datetime
) -> Principal:
    """Use up an invitation; Problem `not_authenticated`. Undone with the transaction."""
    user = await session.orm.get(User, key_of(session.tenant_id, token.id), with_for_update=True)
    if user is None or user.invitation is None or not token.matches(sealer, user.invitation):
        raise refused()
    expires = user.invitation_expires_at
    is_open = expires is not None and expires > now and user.state != UserState.DISABLED
    if not is_open or not await is_active(session):
        raise refused()
    user.invitation = user.invitation_expires_at = None
    return _principal(session, user, frozenset({Privilege.INVITATION_ACCEPT}))


async def check_password(database: Database, tenant_id: UUID, wanted: LoginInput) -> bool:
    """Whether the password is the account's. No connection is held while it is worked out."""
    async with database.tenant(tenant_id) as session:
        kept = await session.orm.scalar(
            select(User.password_hash).where(User.tenant_id == tenant_id, User.name == wanted.name)
        )
    return await is_password(wanted.password.get_secret_value(), kept)


async def authenticate_login(
    session: TenantSession, wanted: LoginInput, sealer: Sealer, now: datetime
) -> Principal:
    """The person of a right password and this code; Problem `not_authenticated`."""
    found = await session.orm.scalars(
        select(User)
        .where(User.tenant_id == session.tenant_id, User.name == wanted.name)
        .with_for_update()
    )
    user = found.one_or_none()
    issuer = await session.orm.get(Issuer, session.tenant_id)
    if user is None or not _may_try(user, now) or not await is_active(session):
        raise refused()
    if issuer is not None and issuer.enforced_at is not None and user.id != issuer.break_glass_id:
        raise refused()
    step = used_step(sealer, user, wanted.code, now)
    if step is None:
        raise refused()
    user.totp_step, user.failures, user.locked_until = step, 0, None
    return _principal(session, user, frozenset({Privilege.LOGIN}))


async def authenticate_session(
    session: TenantSession, token: Token, sealer: Sealer, now: datetime
) -> Principal:
    """The person behind a session's token; Problem `not_authenticated`."""
    row = await session.orm.get(UserSession, key_of(session.tenant_id, token.id))
    if row is None or row.ended_at is not None or not token.matches(sealer, row.fingerprint):
        raise refused()
    if now - row.seen_at > IDLE_MAX or now - row.created_at > SESSION_MAX:
        raise refused()
    user = await session.orm.get(User, key_of(session.tenant_id, row.user_id))
    if user is None or user.state != UserState.ACTIVE or not await is_active(session):
        raise refused()
    grants = (await load_grants(session, [user]))[user.id]
    if now - row.seen_at > _SEEN_GRAIN:
        mark = update(UserSession).where(
            UserSession.tenant_id == row.tenant_id, UserSession.id == row.id
        )
        await session.orm.execute(mark.values(seen_at=now))
    return principal_of(session.tenant_id, user.id, show(Kind.USER, user.id), grants, row.id)


async def note_failure(
    database: Database, tenant_id: UUID, wanted: LoginInput, by: Circumstances
) -> None:
    """Count a wrong login and lock the account for a while; in a transaction of its own."""
    async with database.tenant(tenant_id) as session:
        found = await session.orm.scalars(
            select(User)
            .where(User.tenant_id == session.tenant_id, User.name == wanted.name)
            .with_for_update()
        )
        user = found.one_or_none()
        if user is None:
            return
        user.failures += 1
        seconds = _lock_seconds(user.failures)
        user.locked_until = by.at + timedelta(seconds=seconds) if seconds else None
        act = Act("users.login", show(Kind.USER, user.id), "denied", {"failures": user.failures})
        await write_ledger(session, [], [act], by)
        await session.commit()


def _lock_seconds(failures: int) -> int:
    """Nothing for the first few, then 1 s, 2 s, 4 s … up to 15 min."""
    over = failures - _FREE_FAILURES
    return 0 if over <= 0 else min(_LOCK_SECONDS_MAX, int(math.pow(2, min(over - 1, 20))))


def _may_try(user: User, now: datetime) -> bool:
    is_locked = user.locked_until is not None and user.locked_until > now
    return user.state == UserState.ACTIVE and user.totp_secret is not None and not is_locked


def _principal(session: TenantSession, user: User, privileges: frozenset[Privilege]) -> Principal:
    return Principal(session.tenant_id, user.id, show(Kind.USER, user.id), privileges)


async def is_active(session: TenantSession) -> bool:
    """Whether the tenant may be entered at all."""
    tenant = await session.orm.get(Tenant, session.tenant_id)
    return tenant is not None and tenant.state == TenantState.ACTIVE
