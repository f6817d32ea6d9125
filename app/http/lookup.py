"""Get a tenant's object by the identifier in a path."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from app.http.unit import TenantUnit
from app.kit.ids import BadId, Kind, parse
from app.kit.problems import Problem, not_found
from app.models.base import Resource, key_of

R = TypeVar("R", bound=Resource)


async def find(unit: TenantUnit, model: type[R], kind: Kind, text: str, *, lock: bool = False) -> R:
    """The tenant's object; Problem `not_found` for every other id, whatever is wrong with it."""
    try:
        key = parse(kind, text)
    except BadId:
        raise not_found() from None
    where = key_of(unit.session.tenant_id, key)
    found = await unit.session.orm.get(model, where, with_for_update=lock or None)
    if found is None:
        raise not_found()
    return found


def parse_filter(kind: Kind, text: str) -> UUID:
    """The identifier in a list's filter; Problem `bad_request` for one of no such kind."""
    try:
        return parse(kind, text)
    except BadId as error:
        raise Problem("bad_request", str(error), hint="Check the identifier.") from None
