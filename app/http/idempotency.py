"""One effect for each Idempotency-Key: a repeat gets the first answer again.

The record is written in the request's own transaction: it exists exactly if the effect does. A
repeat that comes while the first is at work waits for it at the record's key. An answer that shows
a secret is kept without it: its repeat is told that the secret was shown.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, cast

from sqlalchemy import Table, and_, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.responses import Response

from app.events.ledger import LOCK, Lock
from app.http.unit import ProviderUnit, TenantUnit
from app.kit.problems import Problem
from app.models import IdempotencyRecord
from app.models.identity import KeptAnswer

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_KEPT_HEADERS = ("content-type", "location", "etag")
MUTATING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: Made once: putting a statement together costs as much as sending it.
_TABLE = cast("Table", IdempotencyRecord.__table__)
_IS = and_(
    _TABLE.c.tenant_id == bindparam("of_tenant"),
    _TABLE.c.principal_id == bindparam("of_principal"),
    _TABLE.c.key == bindparam("of_key"),
)
_ENTER = (
    insert(_TABLE)
    .values(
        tenant_id=bindparam("of_tenant"),
        principal_id=bindparam("of_principal"),
        key=bindparam("of_key"),
        request_hash=bindparam("of_request"),
        created_at=bindparam("of_time"),
    )
    .on_conflict_do_nothing()
    .returning(_TABLE.c.key)
)
_FIRST = select(IdempotencyRecord).where(_IS)
#: The answer is kept by the statement that locks the ledger: the transaction's last but one.
_KEEP = LOCK.add_cte(
    update(_TABLE)
    .where(_IS)
    .values(
        status=bindparam("of_status"), headers=bindparam("of_headers"), body=bindparam("of_body")
    )
    .cte("kept")
)


def key_of(request: Request) -> str | None:
    """The request's Idempotency-Key, if it has one; Problem if it is none."""
    key = request.headers.get("idempotency-key")
    if key is None or request.method not in MUTATING:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("bad_request", "An Idempotency-Key has 1 to 128 visible ASCII characters.")
    return key


async def request_hash(request: Request) -> bytes:
    """What makes two requests the same one."""
    head = f"{request.method}\n{request.url.path}\n{request.url.query}\n".encode()
    return hashlib.sha256(head + await request.body()).digest()


async def begin(unit: TenantUnit, key: str, wanted: bytes) -> Response | None:
    """Enter the key; the first answer if there was one. Problem for another request's key."""
    entry = {"of_request": wanted, "of_time": unit.now, **_named(unit, key)}
    try:
        found = await unit.session.orm.execute(_ENTER, entry)
    except OperationalError:
        raise Problem("request_in_progress", hint="Wait for the first answer.") from None
    if found.first() is not None:
        return None
    return replay(await _record(unit, key), wanted)


async def _record(unit: TenantUnit, key: str) -> IdempotencyRecord:
    found = await unit.session.orm.scalars(_FIRST, _named(unit, key))
    return found.one()


def _named(unit: TenantUnit, key: str) -> dict[str, Any]:
    return {"of_tenant": unit.session.tenant_id, "of_principal": unit.principal.id, "of_key": key}


def replay(record: KeptAnswer, wanted: bytes) -> Response:
    """The first answer. Problems `idempotency_key_reused`, `secret_already_shown`."""
    check_same(record, wanted)
    assert record.status is not None
    headers = dict(record.headers or {})
    if record.body is None:
        raise Problem(
            "secret_already_shown",
            f"The request made {headers.get('subject')}; its secret was shown in the first answer.",
            hint="Revoke it and make a new one if the secret was lost.",
        )
    return Response(record.body, record.status, {**headers, "idempotent-replayed": "true"})


def check_same(record: KeptAnswer, wanted: bytes) -> None:
    """Problem `idempotency_key_reused` for another request than the one that brought the key."""
    if record.request_hash != wanted:
        raise Problem(
            "idempotency_key_reused", hint="Use a new Idempotency-Key for another request."
        )


def kept(unit: TenantUnit | ProviderUnit, response: Response) -> dict[str, Any]:
    """What a record keeps of an answer, by column."""
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    if unit.shows_secret is not None:
        headers["subject"] = unit.shows_secret
    body = None if unit.shows_secret is not None else bytes(response.body)
    return {"status": response.status_code, "headers": headers, "body": body}


def keeping(unit: TenantUnit, key: str, response: Response) -> Lock:
    """What keeps the answer, in the request's transaction."""
    answer = {f"of_{name}": value for name, value in kept(unit, response).items()}
    return Lock(_KEEP, answer | _named(unit, key))
