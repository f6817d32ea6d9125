"""Get a tenant's object by the identifier in a path."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from sqlalchemy import select

from app.http.unit import TenantUnit
from app.identity.coverage import READ_OF, coverage
from app.identity.principals import privilege_missing
from app.identity.scopes import WHOLE
from app.kit.ids import BadId, Kind, parse
from app.kit.problems import Problem, not_found
from app.models.base import Resource, key_of

R = TypeVar("R", bound=Resource)


async def find(unit: TenantUnit, model: type[R], kind: Kind, text: str, *, lock: bool = False) -> R:
    """The tenant's object; Problem `not_found` for every other id, whatever is wrong with it, and
    for what the caller may not see; `privilege_missing` for what the caller sees and no more.
    """
    try:
        key = parse(kind, text)
    except BadId:
        raise not_found() from None
    if not unit.is_narrowed:
        where = key_of(unit.session.tenant_id, key)
        found = await unit.session.orm.get(model, where, with_for_update=lock or None)
    else:
        found = await _find_within(unit, model, key, lock=lock)
    if found is None:
        raise not_found()
    return found


async def _find_within(unit: TenantUnit, model: type[R], key: UUID, *, lock: bool) -> R | None:
    """As much is asked of the database for what is absent as for what is out of reach."""
    read = READ_OF.get(model)
    seen = WHOLE if read is None else unit.principal.reach(read)
    readable = await coverage(unit.session, model, seen)
    allowed = await coverage(unit.session, model, unit.principal.reach(unit.privilege))
    wanted = select(model, readable.label("readable"), allowed.label("allowed")).where(
        model.tenant_id == unit.session.tenant_id, model.id == key
    )
    wanted = wanted.with_for_update(of=model) if lock else wanted
    row = (await unit.session.orm.execute(wanted)).one_or_none()
    if row is None or not row.readable:
        return None
    if not row.allowed:
        raise privilege_missing(unit.privilege)
    found: R = row[0]
    return found


def parse_filter(kind: Kind, text: str) -> UUID:
    """The identifier in a list's filter; Problem `bad_request` for one of no such kind."""
    try:
        return parse(kind, text)
    except BadId as error:
        raise Problem("bad_request", str(error), hint="Check the identifier.") from None
