"""Checkpoints come in, in batches, from the data services manager."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from app.checkpoints.identity import moment_of
from app.checkpoints.merging import PackKey, Taken, key_for, merge, taken_bounds
from app.checkpoints.packing import Columns, pack, unpack
from app.checkpoints.state import CheckpointState
from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.kit.ids import Kind, show
from app.models import Checkpoint, CheckpointPack, VpgStatus

_Row = dict[str, Any]


async def record_checkpoints(
    session: TenantSession, taken: Sequence[Taken], now: datetime
) -> list[Happening]:
    """Enter checkpoints of any of the tenant's groups; telling the same again changes nothing.
    At most four statements, however many. A group's RPO follows the newest complete one.
    """
    automatic = [one for one in taken if one.is_automatic]
    named = list({one.id: one for one in taken if not one.is_automatic}.values())
    if automatic:
        await _record_packed(session, automatic)
    happenings = await _record_rows(session, named, now) if named else []
    await _raise_recoverable(session, taken)
    return happenings


async def _record_packed(session: TenantSession, taken: Sequence[Taken]) -> None:
    # Only the first packs wait for it, some 40 ms, and nobody else does.
    await asyncio.to_thread(import_module, "numpy")
    by_pack: dict[PackKey, list[Taken]] = defaultdict(list)
    for one in taken:
        by_pack[key_for(one)].append(one)
    keys = sorted(by_pack, key=lambda key: (key.vpg_id, key.begins_ms))
    known = await _load_packs(session, keys)
    rows = []
    for key in keys:
        rows.append(_pack_row(session, key, merge(key, known.get(key), by_pack[key])))
        await asyncio.sleep(0)  # half a millisecond each, and others wait for the loop
    entered = insert(CheckpointPack).values(rows)
    changed = {name: entered.excluded[name] for name in rows[0] if name not in _PACK_KEY}
    await session.orm.execute(
        entered.on_conflict_do_update(index_elements=list(_PACK_KEY), set_=changed)
    )


_PACK_KEY = ("tenant_id", "vpg_id", "begins_at")


async def _load_packs(session: TenantSession, keys: Sequence[PackKey]) -> dict[PackKey, Columns]:
    table = CheckpointPack
    wanted = [(key.vpg_id, moment_of(key.begins_ms)) for key in keys]
    found = await session.orm.execute(
        select(table.vpg_id, table.begins_at, table.packed)
        .where(
            table.tenant_id == session.tenant_id,
            tuple_(table.vpg_id, table.begins_at).in_(wanted),
        )
        .order_by(table.vpg_id, table.begins_at)
        .with_for_update()
    )
    return {
        PackKey(row.vpg_id, round(row.begins_at.timestamp() * 1000)): unpack(row.packed)
        for row in found
    }


def _pack_row(session: TenantSession, key: PackKey, columns: Columns) -> _Row:
    first, last = taken_bounds(key, columns)
    return {
        "tenant_id": session.tenant_id,
        "vpg_id": key.vpg_id,
        "begins_at": moment_of(key.begins_ms),
        "count": len(columns),
        "complete": int(columns.is_complete.sum()),
        "first_complete_at": first,
        "last_complete_at": last,
        "response_us_max": int(columns.response.max()),
        "hold_us_max": int(columns.hold.max()),
        "skew_us_max": int(columns.skew.max()),
        "packed": pack(columns),
    }


async def _record_rows(
    session: TenantSession, taken: Sequence[Taken], now: datetime
) -> list[Happening]:
    table = Checkpoint
    entered = insert(table).values([_row(session, one, now) for one in taken])
    told = ("kind", "state", "taken_at", "positions", "response_us", "hold_us", "skew_us", "error")
    found = await session.orm.execute(
        entered.on_conflict_do_update(
            index_elements=["tenant_id", "id"],
            set_={
                **{name: entered.excluded[name] for name in told},
                "tag": func.coalesce(table.tag, entered.excluded.tag),
                "version": table.version + 1,
            },
            # What is complete or failed is over.
            where=table.state == CheckpointState.PENDING,
        ).returning(table.id, table.vpg_id, table.state, table.tag)
    )
    return [
        Happening(
            f"checkpoints.{row.state}",
            show(Kind.CHECKPOINT, row.id),
            {"vpg": show(Kind.VPG, row.vpg_id), "tag": row.tag},
        )
        for row in found
    ]


def _row(session: TenantSession, taken: Taken, now: datetime) -> _Row:
    return {
        "tenant_id": session.tenant_id,
        "id": taken.id,
        "created_at": now,
        "version": 1,
        "vpg_id": taken.vpg_id,
        "kind": taken.kind,
        "state": taken.state,
        "tag": taken.tag,
        "expected_at": taken.expected_at,
        "taken_at": taken.taken_at,
        "positions": positions_shown(taken),
        "response_us": taken.response_us,
        "hold_us": taken.hold_us,
        "skew_us": taken.skew_us,
        "error": taken.error,
        "in_pack": False,
        "is_pinned": False,
        "pin_reason": None,
        "operation_id": taken.operation_id,
    }


def positions_shown(taken: Taken) -> dict[str, int]:
    """Sequences by the hosts' ids as users see them."""
    return {show(Kind.HOST, host): seq for host, seq in taken.positions.items()}


async def _raise_recoverable(session: TenantSession, taken: Sequence[Taken]) -> None:
    """The newest complete checkpoint of each group, and the first one ever; one statement."""
    times: dict[UUID, list[datetime]] = defaultdict(list)
    for one in taken:
        if one.state == CheckpointState.COMPLETE and one.taken_at is not None:
            times[one.vpg_id].append(one.taken_at)
    if not times:
        return
    table = VpgStatus
    newest = _by_group({key: max(moments) for key, moments in times.items()})
    oldest = _by_group({key: min(moments) for key, moments in times.items()})
    # While nothing was folded, history begins with the first one, however late that is told.
    is_whole = table.oldest_at.is_(None) | (table.oldest_at == table.protected_since)
    await session.orm.execute(
        update(table)
        .where(table.tenant_id == session.tenant_id, table.vpg_id.in_(sorted(times)))
        .values(
            recoverable_at=func.greatest(table.recoverable_at, newest),
            oldest_at=case((is_whole, func.least(table.oldest_at, oldest)), else_=table.oldest_at),
            protected_since=func.least(table.protected_since, oldest),
        )
        .execution_options(synchronize_session=False)
    )


def _by_group(moments: dict[UUID, datetime]) -> Any:
    return case(moments, value=VpgStatus.vpg_id)
