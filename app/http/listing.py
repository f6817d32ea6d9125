"""Lists by key: filters, one sort column, and the id as the last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, Row, Select, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from app.http.unit import TenantUnit
from app.identity.coverage import coverage
from app.kit.paging import LIMIT_DEFAULT, LIMIT_MAX, read_cursor, write_cursor
from app.kit.problems import Problem
from app.models.base import Resource

R = TypeVar("R", bound=Resource)

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Objects on a page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of a page.")]
Sort = Annotated[
    str | None, Query(max_length=40, description="`name` or `created_at`; with `-`: descending.")
]


@dataclass(frozen=True)
class Listing:
    """What a request asks of a list."""

    limit: int = LIMIT_DEFAULT
    cursor: str | None = None
    sort: str | None = None


async def _read_listing(
    limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Listing:
    return Listing(limit, cursor, sort)


#: A list's parameter: which page is wanted, in which order.
Asked = Annotated[Listing, Depends(_read_listing)]


async def list_page(
    unit: TenantUnit, model: type[R], listing: Listing, filters: Sequence[ColumnElement[bool]] = ()
) -> tuple[Sequence[R], str | None]:
    """A page of the rows that the caller may see, and the cursor of the next; Problem for a bad
    sort or cursor.
    """
    wanted = select(model).where(model.tenant_id == unit.session.tenant_id, *filters)
    rows, following = await list_rows(unit, model, listing, wanted)
    return [row[0] for row in rows], following


async def list_rows(
    unit: TenantUnit, model: type[R], listing: Listing, wanted: Select[R, *tuple[Any, ...]]
) -> tuple[Sequence[Row[R, *tuple[Any, ...]]], str | None]:
    """The same of a query that gives more beside each object, which comes first; one query, and
    one more for who does not see the whole tenant.
    """
    column, descending = _sorted_by(model, listing.sort)
    order = (column, model.id)
    listed = f"{unit.session.tenant_id}:{model.__name__}:{listing.sort}"
    if unit.is_narrowed:
        reach = unit.principal.reach(unit.privilege)
        wanted = wanted.where(await coverage(unit.session, model, reach))
    if listing.cursor is not None:
        value, last_id = read_cursor(unit.tools.sealer, listed, listing.cursor)
        value = datetime.fromisoformat(value) if column.key == "created_at" else value
        after = tuple_(literal(value, column.type), literal(UUID(last_id), model.id.type))
        key = tuple_(*order)
        wanted = wanted.where(key < after if descending else key > after)
    ordered = [part.desc() if descending else part.asc() for part in order]
    found = await unit.session.orm.execute(wanted.order_by(*ordered).limit(listing.limit + 1))
    rows = found.all()
    page = rows[: listing.limit]
    if len(rows) <= listing.limit:
        return page, None
    last = page[-1][0]
    position = [_plain(getattr(last, column.key)), str(last.id)]
    return page, write_cursor(unit.tools.sealer, listed, position)


def _sorted_by(model: type[Resource], sort: str | None) -> tuple[InstrumentedAttribute[Any], bool]:
    name = (sort or "created_at").removeprefix("-")
    if name not in ("created_at", "name") or not hasattr(model, name):
        raise Problem("bad_request", "A list is sorted by `name` or `created_at`.")
    return getattr(model, name), (sort or "").startswith("-")


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
