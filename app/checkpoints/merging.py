"""New checkpoints go into a pack that may have them already. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.checkpoints.identity import checkpoint_id, milliseconds, moment_of
from app.checkpoints.packing import COMPLETE, NAMES, PACK_MS, Columns, make_columns
from app.checkpoints.state import CODES, KINDS, CheckpointKind, CheckpointState


@dataclass(frozen=True)
class Taken:
    """A checkpoint as the engine knows it. Positions are sequences by host; times in microseconds.

    `id` is `checkpoint_id` of the group and `expected_at` for an automatic one, which is a `crash`
    one without a tag that did not fail.
    """

    vpg_id: UUID
    id: UUID
    expected_at: datetime
    taken_at: datetime | None
    state: CheckpointState
    kind: CheckpointKind = CheckpointKind.CRASH
    positions: Mapping[UUID, int] = field(default_factory=dict)
    response_us: int = 0
    hold_us: int = 0
    skew_us: int = 0
    tag: str | None = None
    error: dict[str, Any] | None = None
    operation_id: UUID | None = None

    @property
    def is_automatic(self) -> bool:
        """Whether a pack has it, and no row."""
        is_plain = self.kind == CheckpointKind.CRASH and self.tag is None
        return is_plain and self.state != CheckpointState.FAILED and self.taken_at is not None


@dataclass(frozen=True)
class PackKey:
    """Which pack."""

    vpg_id: UUID
    begins_ms: int


def key_for(taken: Taken) -> PackKey:
    """The pack that a checkpoint belongs to."""
    stamp = milliseconds(taken.expected_at)
    return PackKey(taken.vpg_id, stamp - stamp % PACK_MS)


def merge(key: PackKey, before: Columns | None, new: Sequence[Taken]) -> Columns:
    """The pack with these in it. What is complete stays so, whatever is told later."""
    rows, positions = _open(before)
    for taken in new:
        row = _row(key, taken)
        known = rows.get(row[0])
        if known is not None and known[_FLAGS] & COMPLETE and not row[_FLAGS] & COMPLETE:
            continue
        rows[row[0]], positions[row[0]] = row, dict(taken.positions)
    hosts = tuple(sorted({host for at in positions.values() for host in at}))
    order = sorted(rows)
    at = [[positions[stamp].get(host, 0) for host in hosts] for stamp in order]
    return make_columns(hosts, [rows[stamp] for stamp in order], at)


_FLAGS = NAMES.index("flags")
_Row = tuple[int, ...]


def _open(pack: Columns | None) -> tuple[dict[int, _Row], dict[int, dict[UUID, int]]]:
    if pack is None:
        return {}, {}
    rows = [
        tuple(row) for row in zip(*(getattr(pack, name).tolist() for name in NAMES), strict=True)
    ]
    at = pack.positions.tolist()
    positions = {
        row[0]: {host: seq for host, seq in zip(pack.hosts, line, strict=True) if seq}
        for row, line in zip(rows, at, strict=True)
    }
    return {row[0]: row for row in rows}, positions


def _row(key: PackKey, taken: Taken) -> _Row:
    assert taken.taken_at is not None
    stamp = milliseconds(taken.expected_at)
    offset = round((taken.taken_at - moment_of(stamp)) / timedelta(microseconds=1))
    is_complete = taken.state == CheckpointState.COMPLETE
    flags = CODES[taken.kind] | (COMPLETE if is_complete else 0)
    costs = (taken.response_us, taken.hold_us, taken.skew_us)
    return (stamp - key.begins_ms, offset, flags, *costs)


def taken_bounds(key: PackKey, pack: Columns) -> tuple[datetime | None, datetime | None]:
    """The first and the last of the source's times of what is complete."""
    offsets = (pack.expected * 1000 + pack.taken)[pack.is_complete]
    if not len(offsets):
        return None, None
    begin = moment_of(key.begins_ms)
    first, last = (timedelta(microseconds=int(at)) for at in (offsets.min(), offsets.max()))
    return begin + first, begin + last


def taken_times(key: PackKey, pack: Columns) -> list[datetime]:
    """The source's time of each checkpoint."""
    return [
        moment_of(key.begins_ms + expected) + timedelta(microseconds=offset)
        for expected, offset in zip(pack.expected.tolist(), pack.taken.tolist(), strict=True)
    ]


def open_pack(key: PackKey, pack: Columns) -> list[Taken]:
    """The checkpoints of a pack, one by one."""
    _, positions = _open(pack)
    rows = zip(
        *(getattr(pack, name).tolist() for name in NAMES), taken_times(key, pack), strict=True
    )
    return [
        Taken(
            vpg_id=key.vpg_id,
            id=checkpoint_id(key.vpg_id, key.begins_ms + expected),
            expected_at=moment_of(key.begins_ms + expected),
            taken_at=taken_at,
            state=CheckpointState.COMPLETE if flags & COMPLETE else CheckpointState.PENDING,
            kind=KINDS[flags & ~COMPLETE],
            positions=positions[expected],
            response_us=response,
            hold_us=hold,
            skew_us=skew,
        )
        for expected, _, flags, response, hold, skew, taken_at in rows
    ]
