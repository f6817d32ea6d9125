"""The way in that is left when nothing else is: made on the server, by who runs it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select, update

from app.database.sessions import Database, TenantSession
from app.events.ledger import Act, Circumstances, Happening, write_ledger
from app.identity.grants import add_grants, told
from app.identity.privileges import Role
from app.identity.scopes import Granted
from app.identity.tokens import INVITATION, make_token
from app.kit.clock import Clock
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.sealing import Sealer
from app.models import Grant, Issuer, Tenant, User, UserSession
from app.models.identity import UserState
from app.users.service import INVITATION_LIFETIME
from host_agent.wire.errors import HoldfastError

NAME = "break-glass"
_ACTOR = "holdfast admin reset"


class TenantMissing(HoldfastError):
    """There is no such tenant."""

    code = "not_found"


@dataclass(frozen=True)
class BreakGlass:
    """The account, and the invitation to it that is shown this once."""

    tenant_id: str
    user_id: str
    name: str
    invitation: str
    expires_at: datetime


async def reset_break_glass(
    database: Database, sealer: Sealer, clock: Clock, tenant: str
) -> BreakGlass:
    """A new local administrator of the whole tenant, or the one before with everything anew: its
    password, authenticator and sessions end. TenantMissing.
    """
    now = clock.now()
    try:
        tenant_id = parse(Kind.TENANT, tenant)
    except BadId as error:
        raise TenantMissing(str(error), hint="See `holdfast tenant list`.") from None
    async with database.tenant(tenant_id) as session:
        if await session.orm.get(Tenant, tenant_id) is None:
            raise TenantMissing("There is no such tenant.", hint="See `holdfast tenant list`.")
        user = await _account(session, tenant_id, now)
        token = make_token(tenant_id, user.id, INVITATION)
        expires = now + INVITATION_LIFETIME
        user.invitation, user.invitation_expires_at = token.fingerprint(sealer), expires
        await _admit(session, user, now)
        await _write(session, user, Circumstances(_ACTOR, "", "", now))
    return BreakGlass(tenant, show(Kind.USER, user.id), user.name, token.text, expires)


async def _account(session: TenantSession, tenant_id: UUID, now: datetime) -> User:
    found = await session.orm.scalars(
        select(User).where(User.tenant_id == tenant_id, User.name == NAME).with_for_update()
    )
    user = found.one_or_none()
    if user is None:
        user = User(
            tenant_id=tenant_id,
            id=new_uuid(now),
            created_at=now,
            version=0,
            name=NAME,
            display_name="Break glass",
            totp_step=0,
        )
        session.orm.add(user)
    user.state, user.password_hash, user.totp_secret = UserState.INVITED, None, None
    user.failures, user.locked_until = 0, None
    user.version += 1
    return user


async def _admit(session: TenantSession, user: User, now: datetime) -> None:
    """The whole tenant, also where an issuer is enforced; sessions of before end."""
    await session.orm.flush()
    own = (Grant.tenant_id == user.tenant_id, Grant.user_id == user.id)
    await session.orm.execute(delete(Grant).where(*own))
    add_grants(session, user, [Granted(Role.ADMINISTRATOR)])
    ended = update(UserSession).where(
        UserSession.tenant_id == user.tenant_id,
        UserSession.user_id == user.id,
        UserSession.ended_at.is_(None),
    )
    await session.orm.execute(ended.values(ended_at=now))
    issuer = await session.orm.get(Issuer, user.tenant_id, with_for_update=True)
    if issuer is not None and issuer.enforced_at is not None:
        issuer.break_glass_id = user.id


async def _write(session: TenantSession, user: User, by: Circumstances) -> None:
    shown = show(Kind.USER, user.id)
    details = {"name": user.name, "grants": told(user.tenant_id, [Granted(Role.ADMINISTRATOR)])}
    happened = Happening("users.break_glass_reset", shown, details)
    act = Act("users.break_glass_reset", shown, details=details)
    await write_ledger(session, [happened], [act], by)
    await session.commit()
