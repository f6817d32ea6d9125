"""Who makes a request, worked out from its bearer token inside the tenant's own scope."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import bindparam, select, update

from app.database.sessions import ProviderSession, TenantSession
from app.identity.privileges import PRIVILEGES, PROVIDER_PRIVILEGES, Privilege, Role
from app.identity.scopes import NOTHING, WHOLE, Granted, Place, Reach, reaches_of
from app.identity.tokens import Token
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.models import ApiKey, Grant, ProviderEntry, ProviderKey, Tenant
from app.models.base import key_of
from app.models.tenants import TenantState

#: `last_used_at` is written at most so often, so that reading stays reading.
_LAST_USED_GRAIN = timedelta(minutes=1)
#: An API key with the state of its tenant, a row for each of its grants.
_KEY = (
    select(
        ApiKey.fingerprint,
        ApiKey.expires_at,
        ApiKey.revoked_at,
        ApiKey.last_used_at,
        Tenant.state,
        Grant.role,
        Grant.site_id,
        Grant.vpg_id,
    )
    .join(Tenant, Tenant.id == ApiKey.tenant_id)
    .outerjoin(Grant, (Grant.tenant_id == ApiKey.tenant_id) & (Grant.api_key_id == ApiKey.id))
    .where(ApiKey.tenant_id == bindparam("tenant_id"), ApiKey.id == bindparam("key_id"))
)


@dataclass(frozen=True)
class Principal:
    """An authenticated caller. `tenant_id` is None for the provider's staff, `session_id` for all
    but people in a session. `narrowed` are privileges that do not reach over the whole tenant.
    """

    tenant_id: UUID | None
    id: UUID
    actor: str
    privileges: frozenset[Privilege]
    session_id: UUID | None = None
    narrowed: Mapping[Privilege, Reach] = field(default_factory=dict)

    def reach(self, privilege: Privilege) -> Reach:
        """Over what the caller has it."""
        return self.narrowed.get(privilege, WHOLE) if privilege in self.privileges else NOTHING

    def require(self, privilege: Privilege) -> None:
        """Problem `privilege_missing` unless the caller has it anywhere."""
        if privilege not in self.privileges:
            raise privilege_missing(privilege)

    def require_at(self, privilege: Privilege, place: Place) -> None:
        """Problem `privilege_missing` unless the caller has it at this place."""
        if not self.reach(privilege).covers(place):
            raise privilege_missing(privilege)


def privilege_missing(privilege: Privilege) -> Problem:
    """The caller may see it, and not do this to it."""
    return Problem(
        "privilege_missing",
        f"This needs the privilege {privilege} over what it is done to.",
        hint="Ask an administrator for a role that has it, over the tenant, the site or the group.",
    )


def granted_of(grant: Grant) -> Granted:
    """A grant's row as a value."""
    return Granted(Role(grant.role), Place(grant.site_id, grant.vpg_id))


def principal_of(
    tenant_id: UUID,
    key: UUID,
    actor: str,
    grants: Iterable[Granted],
    session_id: UUID | None = None,
) -> Principal:
    """A caller with these grants."""
    reaches = reaches_of(grants)
    narrowed = {name: reach for name, reach in reaches.items() if not reach.is_whole}
    return Principal(tenant_id, key, actor, frozenset(reaches), session_id, narrowed)


def refused() -> Problem:
    """The one answer to every credential that is not accepted, whatever is wrong with it."""
    return Problem(
        "not_authenticated",
        hint="Send `Authorization: Bearer` with a valid API key of this service.",
    )


async def authenticate_tenant(
    session: TenantSession, token: Token, sealer: Sealer, now: datetime
) -> Principal:
    """The tenant's principal behind an API key's token; Problem `not_authenticated`."""
    whose = {"tenant_id": session.tenant_id, "key_id": token.id}
    rows = (await session.orm.execute(_KEY, whose)).all()
    key = rows[0] if rows else None
    if key is None or not token.matches(sealer, key.fingerprint):
        raise refused()
    expired = key.expires_at is not None and key.expires_at <= now
    if key.revoked_at is not None or expired or key.state != TenantState.ACTIVE:
        raise refused()
    if key.last_used_at is None or now - key.last_used_at > _LAST_USED_GRAIN:
        mark = update(ApiKey).where(ApiKey.tenant_id == session.tenant_id, ApiKey.id == token.id)
        await session.orm.execute(mark.values(last_used_at=now))
    grants = [Granted(Role(row.role), Place(row.site_id, row.vpg_id)) for row in rows if row.role]
    return principal_of(session.tenant_id, token.id, show(Kind.API_KEY, token.id), grants)


async def authenticate_entry(
    session: TenantSession, token: Token, sealer: Sealer, now: datetime
) -> Principal:
    """The provider's staff inside a tenant, who only reads; Problem `not_authenticated`."""
    entry = await session.orm.get(ProviderEntry, key_of(session.tenant_id, token.id))
    tenant = await session.orm.get(Tenant, session.tenant_id)
    if entry is None or tenant is None or not token.matches(sealer, entry.fingerprint):
        raise refused()
    is_over = entry.ended_at is not None or entry.expires_at <= now
    if is_over or tenant.state != TenantState.ACTIVE:
        raise refused()
    actor = show(Kind.PROVIDER_ENTRY, entry.id)
    return Principal(entry.tenant_id, entry.id, actor, PRIVILEGES[Role.VIEWER])


async def authenticate_provider(
    session: ProviderSession, token: Token, sealer: Sealer
) -> Principal:
    """The provider's principal behind a token; Problem `not_authenticated`."""
    found = await session.orm.scalars(select(ProviderKey).where(ProviderKey.id == token.id))
    key = found.one_or_none()
    if key is None or key.revoked_at or not token.matches(sealer, key.fingerprint):
        raise refused()
    actor = show(Kind.PROVIDER_KEY, key.id)
    return Principal(None, key.id, actor, PROVIDER_PRIVILEGES)
