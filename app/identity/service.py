"""API keys of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.exc import IntegrityError

from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.grants import add_grants, check_not_last, check_stays, replace_grants, told
from app.identity.schemas import ApiKeyInput
from app.identity.scopes import Granted
from app.identity.tokens import Token, make_token
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.models import ApiKey


async def get_api_key(unit: TenantUnit, key_id: str, *, lock: bool = False) -> ApiKey:
    """The tenant's key; Problem `not_found` for every other id."""
    return await find(unit, ApiKey, Kind.API_KEY, key_id, lock=lock)


def make_api_key(token: Token, sealer: Sealer, wanted: ApiKeyInput, now: datetime) -> ApiKey:
    """The row of a new key whose token is given."""
    assert token.tenant_id is not None
    return ApiKey(
        tenant_id=token.tenant_id,
        id=token.id,
        created_at=now,
        version=1,
        name=wanted.name,
        fingerprint=token.fingerprint(sealer),
        expires_at=wanted.expires_at,
        last_used_at=None,
        revoked_at=None,
    )


async def create_api_key(
    unit: TenantUnit, wanted: ApiKeyInput, grants: Sequence[Granted]
) -> tuple[ApiKey, Token]:
    """Make a key with these grants, and its token; Problem `name_taken`."""
    token = make_token(unit.session.tenant_id, new_uuid(unit.now))
    key = make_api_key(token, unit.tools.sealer, wanted, unit.now)
    unit.session.orm.add(key)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is an API key named {wanted.name} already.") from None
    add_grants(unit.session, key, grants)
    shown = show(Kind.API_KEY, key.id)
    unit.note("api_keys.created", shown, name=key.name, grants=told(key.tenant_id, grants))
    unit.shows_secret = shown
    return key, token


async def grant_api_key(unit: TenantUnit, key: ApiKey, wanted: Sequence[Granted]) -> None:
    """Give a key these grants and no others; Problem `last_administrator`."""
    await check_stays(unit, key, wanted)
    before, is_changed = await replace_grants(unit, key, wanted)
    if is_changed:
        changes = [told(key.tenant_id, before), told(key.tenant_id, wanted)]
        unit.note("api_keys.granted", show(Kind.API_KEY, key.id), name=key.name, grants=changes)


async def revoke_api_key(unit: TenantUnit, key: ApiKey) -> None:
    """End a key at once. Repeats change nothing; Problem `last_administrator`."""
    if key.revoked_at is not None:
        return
    await check_not_last(unit, key)
    key.revoked_at = unit.now
    key.version += 1
    unit.note("api_keys.revoked", show(Kind.API_KEY, key.id), name=key.name)
