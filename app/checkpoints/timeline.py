"""A group's checkpoints in equal stretches of time: one query at any zoom.

Where a stretch is at least as long as a pack, the packs' own totals are added up by the database;
where it is shorter there are so few packs that they are opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Integer,
    LargeBinary,
    Select,
    case,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute

from app.checkpoints.identity import milliseconds, moment_of
from app.checkpoints.merging import PackKey, taken_times
from app.checkpoints.packing import PACK_MS, unpack
from app.checkpoints.schemas import Bucket
from app.checkpoints.state import CheckpointState
from app.database.sessions import TenantSession
from app.models import Checkpoint, CheckpointPack

_T = TypeVar("_T")
_Column = ColumnElement[_T] | InstrumentedAttribute[_T]


@dataclass(frozen=True)
class Frame:
    """Which stretches: milliseconds since 1970."""

    begin_ms: int
    end_ms: int
    width_ms: int

    @property
    def is_coarse(self) -> bool:
        """Whether whole packs lie in a stretch."""
        return self.width_ms >= PACK_MS


def make_frame(begin: datetime, end: datetime, buckets: int) -> Frame:
    """At most so many stretches from `begin` (or the ten minutes that it is in) to `end`."""
    first, last = milliseconds(begin), milliseconds(end)
    width = max(1000, -(-(last - first) // buckets))
    if width < PACK_MS:
        return Frame(first, last, width)
    first -= first % PACK_MS
    width = -(-(last - first) // buckets)
    return Frame(first, last, -(-width // PACK_MS) * PACK_MS)


@dataclass
class _Sum:
    count: int = 0
    complete: int = 0
    failed: int = 0
    tagged: int = 0
    pinned: int = 0
    response: int = 0
    hold: int = 0
    skew: int = 0
    last: datetime | None = None

    def add(self, other: _Sum) -> None:
        for name in ("count", "complete", "failed", "tagged", "pinned"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("response", "hold", "skew"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.last = max(filter(None, (self.last, other.last)), default=None)


async def load_buckets(
    session: TenantSession, vpg_id: UUID, frame: Frame, oldest: datetime | None
) -> list[Bucket]:
    """The stretches that have a checkpoint, in order; one query."""
    sums: dict[int, _Sum] = {}
    for row in await session.orm.execute(_query(session, vpg_id, frame, oldest)):
        if row.packed is not None:
            for place, part in _open(vpg_id, frame, row, oldest):
                sums.setdefault(place, _Sum()).add(part)
        else:
            numbers = {name: getattr(row, name) or 0 for name in _NUMBERS}
            part = _Sum(**numbers, last=row.last_complete_at)
            sums.setdefault(row.place, _Sum()).add(part)
    return [_bucket(frame, place, sums[place]) for place in sorted(sums)]


_NUMBERS = ("count", "complete", "failed", "tagged", "pinned", "response", "hold", "skew")


def _query(
    session: TenantSession, vpg_id: UUID, frame: Frame, oldest: datetime | None
) -> CompoundSelect[*tuple[Any, ...]]:
    begin, end = moment_of(frame.begin_ms), moment_of(frame.end_ms)
    packs = _packs(frame).where(
        CheckpointPack.tenant_id == session.tenant_id,
        CheckpointPack.vpg_id == vpg_id,
        CheckpointPack.begins_at >= begin - timedelta(milliseconds=PACK_MS - 1),
        CheckpointPack.begins_at < end,
    )
    rows = _rows(frame).where(
        Checkpoint.tenant_id == session.tenant_id,
        Checkpoint.vpg_id == vpg_id,
        Checkpoint.expected_at >= begin,
        Checkpoint.expected_at < end,
    )
    if oldest is not None:
        packs = packs.where(CheckpointPack.last_complete_at >= oldest)
    return union_all(packs, rows)


def _place(moment: _Column[datetime], frame: Frame) -> ColumnElement[int]:
    since = func.extract("epoch", moment) * 1000 - literal(frame.begin_ms, BigInteger)
    return cast(func.floor(since / frame.width_ms), Integer)


def _packs(frame: Frame) -> Select[*tuple[Any, ...]]:
    table = CheckpointPack
    if not frame.is_coarse:
        zeros = [literal(0).label(name) for name in _NUMBERS]
        return select(
            literal(0).label("place"),
            *zeros,
            table.last_complete_at,
            table.begins_at,
            table.packed,
        )
    place = _place(table.begins_at, frame)
    return select(
        place.label("place"),
        func.sum(table.count).label("count"),
        func.sum(table.complete).label("complete"),
        *(literal(0).label(name) for name in ("failed", "tagged", "pinned")),
        func.max(table.response_us_max).label("response"),
        func.max(table.hold_us_max).label("hold"),
        func.max(table.skew_us_max).label("skew"),
        func.max(table.last_complete_at).label("last_complete_at"),
        func.min(table.begins_at).label("begins_at"),
        cast(null(), LargeBinary).label("packed"),
    ).group_by(place)


def _rows(frame: Frame) -> Select[*tuple[Any, ...]]:
    table = Checkpoint
    place = _place(table.expected_at, frame)
    is_complete = table.state == CheckpointState.COMPLETE
    # A pinned automatic one is in its pack as well.
    is_counted = table.in_pack.is_(False)
    return select(
        place.label("place"),
        _count(is_counted).label("count"),
        _count(is_counted & is_complete).label("complete"),
        _count(table.state == CheckpointState.FAILED).label("failed"),
        _count(table.tag.is_not(None)).label("tagged"),
        _count(table.is_pinned).label("pinned"),
        func.max(table.response_us).label("response"),
        func.max(table.hold_us).label("hold"),
        func.max(table.skew_us).label("skew"),
        func.max(case((is_complete, table.taken_at))).label("last_complete_at"),
        func.min(table.expected_at).label("begins_at"),
        cast(null(), LargeBinary).label("packed"),
    ).group_by(place)


def _count(condition: _Column[bool]) -> ColumnElement[int]:
    return func.count().filter(condition)


def _open(vpg_id: UUID, frame: Frame, row: Any, oldest: datetime | None) -> list[tuple[int, _Sum]]:
    """The sums of a pack's checkpoints, by stretch."""
    import numpy as np  # as in `packing`: not before it is needed

    key = PackKey(vpg_id, milliseconds(row.begins_at))
    pack = unpack(row.packed)
    at = pack.expected + (key.begins_ms - frame.begin_ms)
    wanted = (at >= 0) & (at < frame.end_ms - frame.begin_ms)
    if oldest is not None:
        begins = moment_of(key.begins_ms)
        since = round((oldest - begins) / timedelta(microseconds=1))
        wanted &= pack.expected * 1000 + pack.taken >= since
    places, complete = at // frame.width_ms, pack.is_complete
    times = taken_times(key, pack)
    sums = []
    for place in np.unique(places[wanted]).tolist():
        here = wanted & (places == place)
        good = np.flatnonzero(here & complete)
        part = _Sum(
            count=int(here.sum()),
            complete=len(good),
            response=int(pack.response[here].max()),
            hold=int(pack.hold[here].max()),
            skew=int(pack.skew[here].max()),
            last=times[int(good[-1])] if len(good) else None,
        )
        sums.append((place, part))
    return sums


def _bucket(frame: Frame, place: int, total: _Sum) -> Bucket:
    return Bucket(
        begins_at=moment_of(frame.begin_ms + place * frame.width_ms),
        checkpoints=total.count,
        complete=total.complete,
        failed=total.failed,
        tagged=total.tagged,
        pinned=total.pinned,
        response_us_max=total.response,
        hold_us_max=total.hold,
        skew_us_max=total.skew,
        last_complete_at=total.last,
    )
