"""At most one effect for each Idempotency-Key of the provider's staff.

What the staff do crosses scopes, so it is several transactions and no record can be of all of them.
The key is entered, and that is committed, before anything is done; the answer is kept with the last
commit. A request that was refused leaves its key free. One that broke off between may have had its
effect: its repeat does nothing and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from fastapi.exceptions import RequestValidationError
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.responses import Response

from app.http.idempotency import check_same, kept, key_of, replay, request_hash
from app.http.unit import ProviderUnit
from app.kit.problems import Problem
from app.models import ProviderIdempotencyRecord
from app.models.identity import ANSWERS_KEPT

#: Longer than a request works.
_HANDLING_MAX = timedelta(minutes=1)


async def answer_once(
    request: Request,
    unit: ProviderUnit,
    original: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Response:
    """The answer, or the first one if the request's key was here before. Problems
    `idempotency_key_reused`, `request_in_progress`, `outcome_unknown`, `secret_already_shown`.
    """
    key = key_of(request)
    if key is None:
        response = await original(request)
    else:
        first = await _begin(unit, key, await request_hash(request))
        if first is not None:
            return first
        response = await _handle(request, unit, key, original)
    await unit.session.commit()
    return response


async def _begin(unit: ProviderUnit, key: str, wanted: bytes) -> Response | None:
    """Enter the key; the first answer if there was one."""
    table, orm = ProviderIdempotencyRecord, unit.session.orm
    await orm.execute(delete(table).where(table.created_at < unit.now - ANSWERS_KEPT))
    entry = insert(table).values(
        principal_id=unit.principal.id, key=key, request_hash=wanted, created_at=unit.now
    )
    try:
        found = await orm.execute(entry.on_conflict_do_nothing().returning(table.key))
    except OperationalError:
        raise _in_progress() from None
    if found.first() is not None:
        await unit.session.commit()
        return None
    record = (await orm.scalars(select(table).where(*_is(unit, key)))).one_or_none()
    if record is None:  # the first was refused just now
        raise _in_progress()
    return _repeat(unit, record, wanted)


def _repeat(unit: ProviderUnit, record: ProviderIdempotencyRecord, wanted: bytes) -> Response:
    if record.status is not None:
        return replay(record, wanted)
    check_same(record, wanted)
    if record.created_at > unit.now - _HANDLING_MAX:
        raise _in_progress()
    raise Problem(
        "outcome_unknown",
        hint="Look whether it did what it should. If not, send it with a new Idempotency-Key.",
    )


def _in_progress() -> Problem:
    return Problem("request_in_progress", hint="Wait for the first answer.")


async def _handle(
    request: Request,
    unit: ProviderUnit,
    key: str,
    original: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Response:
    table, orm = ProviderIdempotencyRecord, unit.session.orm
    try:
        response = await original(request)
    except (Problem, RequestValidationError) as error:
        if not isinstance(error, Problem) or error.kind.status < 500:
            await unit.session.undo()
            await orm.execute(delete(table).where(*_is(unit, key)))
            await unit.session.commit()
        raise
    await orm.execute(update(table).where(*_is(unit, key)).values(kept(unit, response)))
    return response


def _is(unit: ProviderUnit, key: str) -> tuple[ColumnElement[bool], ...]:
    table = ProviderIdempotencyRecord
    return table.principal_id == unit.principal.id, table.key == key
