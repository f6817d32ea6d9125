"""Checkpoints one by one: packed ones and rows as one list, the newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, literal, select, tuple_

from app.checkpoints.identity import checkpoint_id, expected_of, milliseconds, moment_of
from app.checkpoints.merging import PackKey, Taken, open_pack
from app.checkpoints.packing import PACK_MS, unpack
from app.checkpoints.recording import positions_shown
from app.checkpoints.schemas import CheckpointOutput
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.database.sessions import TenantSession
from app.http.unit import TenantUnit
from app.kit.ids import BadId, Kind, parse, show
from app.kit.paging import read_cursor, write_cursor
from app.kit.problems import not_found
from app.models import Checkpoint, CheckpointPack
from app.models.base import key_of


@dataclass(frozen=True)
class Wanted:
    """Which checkpoints of a group. Before `oldest` only those are left that somebody keeps.
    `before` is where the page begins: a time and an identifier.
    """

    vpg_id: UUID
    limit: int
    begin: datetime | None = None
    end: datetime | None = None
    kind: CheckpointKind | None = None
    state: CheckpointState | None = None
    is_named: bool = False
    oldest: datetime | None = None
    before: tuple[datetime, UUID] | None = None


#: Before all identifiers: nothing of that very moment comes after it.
_FIRST = UUID(int=0)
Found = tuple[datetime, UUID, CheckpointOutput]


async def list_checkpoints(
    unit: TenantUnit, wanted: Wanted, cursor: str | None
) -> tuple[list[CheckpointOutput], str | None]:
    """A page, the newest first, and the cursor of the next; two queries. A page may be short of
    its limit although there is another.
    """
    listed = f"{unit.session.tenant_id}:checkpoints:{wanted.vpg_id}"
    if cursor is not None:
        stamp, text = read_cursor(unit.tools.sealer, listed, cursor)
        wanted = replace(wanted, before=(datetime.fromisoformat(stamp), UUID(text)))
    rows = await _rows(unit.session, wanted)
    found = {row.id: (row.expected_at, row.id, show_row(row)) for row in rows}
    floor: datetime | None = None
    if not wanted.is_named and wanted.state != CheckpointState.FAILED:
        packed, floor = await _packed(unit.session, wanted)
        found = {**{one[1]: one for one in packed}, **found}
    ordered = sorted(found.values(), key=lambda one: one[:2], reverse=True)
    if floor is not None:
        ordered = [one for one in ordered if one[0] >= floor]
    page = ordered[: wanted.limit]
    if len(ordered) <= wanted.limit and floor is None and len(rows) <= wanted.limit:
        return [one[2] for one in page], None
    last = page[-1][:2]
    if floor is not None and len(ordered) <= wanted.limit:
        last = (floor, _FIRST)
    position = [last[0].isoformat(), str(last[1])]
    return [one[2] for one in page], write_cursor(unit.tools.sealer, listed, position)


async def _rows(session: TenantSession, wanted: Wanted) -> Sequence[Checkpoint]:
    table = Checkpoint
    query = select(table).where(table.tenant_id == session.tenant_id, table.vpg_id == wanted.vpg_id)
    if wanted.begin is not None:
        query = query.where(table.expected_at >= wanted.begin)
    if wanted.end is not None:
        query = query.where(table.expected_at < wanted.end)
    if wanted.oldest is not None:
        kept = table.is_pinned | table.tag.is_not(None)
        moment = func.coalesce(table.taken_at, table.expected_at)
        query = query.where(kept | (moment >= wanted.oldest))
    if wanted.kind is not None:
        query = query.where(table.kind == wanted.kind)
    if wanted.is_named:
        query = query.where(table.is_pinned | table.tag.is_not(None))
    if wanted.state is not None:
        query = query.where(table.state == wanted.state)
    if wanted.before is not None:
        key = tuple_(table.expected_at, table.id)
        query = query.where(key < tuple_(*map(literal, wanted.before)))
    order = (table.expected_at.desc(), table.id.desc())
    found = await session.orm.scalars(query.order_by(*order).limit(wanted.limit + 1))
    return found.all()


async def _packed(session: TenantSession, wanted: Wanted) -> tuple[list[Found], datetime | None]:
    """Those of as many packs as a page can need; and, if there are more packs, the time down to
    which these are all that there are.
    """
    table = CheckpointPack
    before = func.sum(table.count).over(order_by=table.begins_at.desc()) - table.count
    inner = select(table.begins_at, table.packed, before.label("before")).where(
        table.tenant_id == session.tenant_id, table.vpg_id == wanted.vpg_id
    )
    if wanted.begin is not None:
        inner = inner.where(table.begins_at > wanted.begin - timedelta(milliseconds=PACK_MS))
    if wanted.end is not None:
        inner = inner.where(table.begins_at < wanted.end)
    if wanted.before is not None:
        at, identifier = wanted.before
        is_over = identifier == _FIRST
        inner = inner.where(table.begins_at < at if is_over else table.begins_at <= at)
    if wanted.oldest is not None:
        inner = inner.where(table.last_complete_at >= wanted.oldest)
    packs = inner.subquery()
    # The first pack may lie mostly after the cursor.
    enough = wanted.limit + PACK_MS // 1000
    rows = await session.orm.execute(
        select(packs)
        .where(packs.c.before <= enough)
        .order_by(packs.c.begins_at.desc())
        .limit(wanted.limit + 2)
    )
    loaded = rows.all()
    opened: list[Found] = []
    for row in loaded:
        opened += _shown(PackKey(wanted.vpg_id, milliseconds(row.begins_at)), row.packed)
    is_all = len(opened) <= enough and len(loaded) < wanted.limit + 2
    found = [one for one in opened if _matches(one, wanted)]
    return found, None if is_all else loaded[-1].begins_at


def _shown(key: PackKey, packed: bytes) -> list[Found]:
    return [(one.expected_at, one.id, show_taken(one)) for one in open_pack(key, unpack(packed))]


def _matches(found: Found, wanted: Wanted) -> bool:
    at, identifier, shown = found
    return (
        (wanted.begin is None or at >= wanted.begin)
        and (wanted.end is None or at < wanted.end)
        and (wanted.oldest is None or (shown.taken_at or at) >= wanted.oldest)
        and (wanted.before is None or (at, identifier) < wanted.before)
        and wanted.kind in (None, shown.kind)
        and wanted.state in (None, shown.state)
    )


async def get_checkpoint(
    unit: TenantUnit, vpg_id: UUID, text: str, *, lock: bool = False
) -> Checkpoint | Taken:
    """The group's checkpoint, as a row or from its pack; Problem `not_found`. Two queries."""
    try:
        key = parse(Kind.CHECKPOINT, text)
    except BadId:
        raise not_found() from None
    where = key_of(unit.session.tenant_id, key)
    row = await unit.session.orm.get(Checkpoint, where, with_for_update=lock or None)
    packed = await _find_packed(unit.session, vpg_id, key)
    if row is not None and row.vpg_id == vpg_id:
        return row
    if packed is None:
        raise not_found()
    return packed


async def _find_packed(session: TenantSession, vpg_id: UUID, key: UUID) -> Taken | None:
    stamp = expected_of(key)
    begins = stamp - stamp % PACK_MS
    table = CheckpointPack
    data = await session.orm.scalar(
        select(table.packed).where(
            table.tenant_id == session.tenant_id,
            table.vpg_id == vpg_id,
            table.begins_at == moment_of(begins),
        )
    )
    if data is None or checkpoint_id(vpg_id, stamp) != key:
        return None
    opened = open_pack(PackKey(vpg_id, begins), unpack(data))
    return next((one for one in opened if one.id == key), None)


def show_checkpoint(found: Checkpoint | Taken) -> CheckpointOutput:
    """As the API shows it."""
    return show_row(found) if isinstance(found, Checkpoint) else show_taken(found)


def show_row(row: Checkpoint) -> CheckpointOutput:
    """A row as the API shows it."""
    return CheckpointOutput(
        id=show(Kind.CHECKPOINT, row.id),
        vpg_id=show(Kind.VPG, row.vpg_id),
        kind=CheckpointKind(row.kind),
        state=CheckpointState(row.state),
        tag=row.tag,
        expected_at=row.expected_at,
        taken_at=row.taken_at,
        positions=row.positions,
        response_us=row.response_us,
        hold_us=row.hold_us,
        skew_us=row.skew_us,
        error=row.error,
        is_pinned=row.is_pinned,
        pin_reason=row.pin_reason,
    )


def show_taken(taken: Taken) -> CheckpointOutput:
    """A packed one as the API shows it."""
    return CheckpointOutput(
        id=show(Kind.CHECKPOINT, taken.id),
        vpg_id=show(Kind.VPG, taken.vpg_id),
        kind=taken.kind,
        state=taken.state,
        tag=None,
        expected_at=taken.expected_at,
        taken_at=taken.taken_at,
        positions=positions_shown(taken),
        response_us=taken.response_us,
        hold_us=taken.hold_us,
        skew_us=taken.skew_us,
        error=None,
        is_pinned=False,
        pin_reason=None,
    )
