"""API keys of a tenant."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.http.unit import TenantUnit
from app.identity.privileges import Role
from app.identity.schemas import ApiKeyInput
from app.identity.tokens import Token, make_token
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.kit.sealing import Sealer
from app.models import ApiKey, User
from app.models.base import key_of
from app.models.identity import UserState


async def get_api_key(unit: TenantUnit, key_id: str) -> ApiKey:
    """The tenant's key; Problem `not_found` for every other id."""
    try:
        key = parse(Kind.API_KEY, key_id)
    except BadId:
        raise not_found() from None
    found = await unit.session.orm.get(ApiKey, key_of(unit.session.tenant_id, key))
    if found is None:
        raise not_found()
    return found


def make_api_key(token: Token, sealer: Sealer, wanted: ApiKeyInput, now: datetime) -> ApiKey:
    """The row of a new key whose token is given."""
    assert token.tenant_id is not None
    return ApiKey(
        tenant_id=token.tenant_id,
        id=token.id,
        created_at=now,
        version=1,
        name=wanted.name,
        role=wanted.role,
        fingerprint=token.fingerprint(sealer),
        expires_at=wanted.expires_at,
        last_used_at=None,
        revoked_at=None,
    )


async def create_api_key(unit: TenantUnit, wanted: ApiKeyInput) -> tuple[ApiKey, Token]:
    """Make a key and its token; Problem `name_taken` or `privilege_missing`."""
    token = make_token(unit.session.tenant_id, new_uuid(unit.now))
    key = make_api_key(token, unit.tools.sealer, wanted, unit.now)
    unit.session.orm.add(key)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is an API key named {wanted.name} already.") from None
    shown = show(Kind.API_KEY, key.id)
    unit.note("api_keys.created", shown, name=key.name, role=key.role)
    unit.shows_secret = shown
    return key, token


async def revoke_api_key(unit: TenantUnit, key: ApiKey) -> None:
    """End a key at once. Repeats change nothing; Problem `last_administrator`."""
    if key.revoked_at is not None:
        return
    if key.role == Role.ADMINISTRATOR and await count_administrators(unit) <= 1:
        raise Problem(
            "last_administrator",
            "This is the last administrator.",
            hint="Make another one first.",
        )
    key.revoked_at = unit.now
    key.version += 1
    unit.note("api_keys.revoked", show(Kind.API_KEY, key.id), name=key.name)


async def count_administrators(unit: TenantUnit) -> int:
    """API keys and people that can administer now, counted under locks against ending the last
    two at once.
    """
    keys = (
        select(ApiKey.id)
        .where(
            ApiKey.tenant_id == unit.session.tenant_id,
            ApiKey.role == Role.ADMINISTRATOR,
            ApiKey.revoked_at.is_(None),
            (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > unit.now),
        )
        .order_by(ApiKey.id)
        .with_for_update()
    )
    people = (
        select(User.id)
        .where(
            User.tenant_id == unit.session.tenant_id,
            User.role == Role.ADMINISTRATOR,
            User.state == UserState.ACTIVE,
        )
        .order_by(User.id)
        .with_for_update()
    )
    found = [(await unit.session.orm.scalars(query)).all() for query in (keys, people)]
    return sum(map(len, found))
