"""Checkpoints that people ask for and keep, and what retention takes away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, select, update

from app.checkpoints.merging import Taken
from app.checkpoints.packing import PACK_MS
from app.checkpoints.reading import get_checkpoint
from app.checkpoints.recording import positions_shown
from app.checkpoints.schemas import CheckpointInput, PinInput
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.database.sessions import TenantSession
from app.dsm.commands import CommandKind
from app.http.unit import TenantUnit
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.models import Checkpoint, CheckpointPack, Operation, Vpg, VpgStatus
from app.operations.service import Wanted as WantedOperation
from app.operations.service import open_operation
from app.vpgs.service import ask_managers, check_protecting

TAKE = "checkpoint.take"


async def take_checkpoint(unit: TenantUnit, vpg: Vpg, wanted: CheckpointInput) -> Operation:
    """Ask for a checkpoint with a tag; IllegalTransition unless the group is protected."""
    check_protecting(vpg)
    shown = show(Kind.VPG, vpg.id)
    key = new_uuid(unit.now)
    told = {"checkpoint": show(Kind.CHECKPOINT, key), "tag": wanted.tag}
    asked = WantedOperation(TAKE, shown, told, ("request", "mark", "store"), is_cancellable=False)
    operation = open_operation(unit.session, asked, unit.circumstances)
    unit.session.orm.add(
        Checkpoint(
            tenant_id=unit.session.tenant_id,
            id=key,
            created_at=unit.now,
            version=1,
            vpg_id=vpg.id,
            kind=CheckpointKind.TAGGED,
            state=CheckpointState.PENDING,
            tag=wanted.tag,
            expected_at=unit.now,
            taken_at=None,
            positions={},
            in_pack=False,
            is_pinned=False,
            operation_id=operation.id,
        )
    )
    await unit.session.orm.flush()
    await ask_managers(unit, vpg, CommandKind.CHECKPOINT, operation.id)
    unit.note("checkpoints.requested", told["checkpoint"], vpg=shown, tag=wanted.tag)
    return operation


async def pin_checkpoint(
    unit: TenantUnit, vpg: Vpg, checkpoint_id: str, wanted: PinInput
) -> Checkpoint:
    """Keep a checkpoint beyond the history window. Repeats change nothing."""
    found = await get_checkpoint(unit, vpg.id, checkpoint_id, lock=True)
    if isinstance(found, Taken):
        found = _row_of(unit, found)
        unit.session.orm.add(found)
    if found.state == CheckpointState.FAILED:
        raise Problem(
            "checkpoint_failed", "A checkpoint that failed cannot be kept.", hint="Take another."
        )
    if not found.is_pinned:
        found.is_pinned, found.pin_reason = True, wanted.reason
        found.version += 1
        shown = show(Kind.CHECKPOINT, found.id)
        unit.note("checkpoints.pinned", shown, vpg=show(Kind.VPG, vpg.id), reason=wanted.reason)
    return found


async def unpin_checkpoint(unit: TenantUnit, vpg: Vpg, checkpoint_id: str) -> Checkpoint | Taken:
    """Keep a checkpoint no longer than its history window. Repeats change nothing."""
    found = await get_checkpoint(unit, vpg.id, checkpoint_id, lock=True)
    if isinstance(found, Checkpoint) and found.is_pinned:
        found.is_pinned, found.pin_reason = False, None
        found.version += 1
        unit.note(
            "checkpoints.unpinned", show(Kind.CHECKPOINT, found.id), vpg=show(Kind.VPG, vpg.id)
        )
    return found


def _row_of(unit: TenantUnit, taken: Taken) -> Checkpoint:
    return Checkpoint(
        tenant_id=unit.session.tenant_id,
        id=taken.id,
        created_at=unit.now,
        version=1,
        vpg_id=taken.vpg_id,
        kind=taken.kind,
        state=taken.state,
        tag=None,
        expected_at=taken.expected_at,
        taken_at=taken.taken_at,
        positions=positions_shown(taken),
        response_us=taken.response_us,
        hold_us=taken.hold_us,
        skew_us=taken.skew_us,
        in_pack=True,
        is_pinned=False,
    )


@dataclass(frozen=True)
class Kept:
    """Checkpoints of a group as its journal names them: kept by people, and kept no longer."""

    pinned: list[str]
    released: list[str]


async def kept_checkpoints(session: TenantSession, vpg_id: UUID) -> Kept:
    """What a journal has to be told before it is folded; one query. Tagged ones it keeps anyway."""
    table = Checkpoint
    found = await session.orm.execute(
        select(table.id, table.is_pinned).where(
            table.tenant_id == session.tenant_id,
            table.vpg_id == vpg_id,
            table.is_pinned | table.in_pack,
        )
    )
    rows = found.all()
    return Kept(
        [row.id.hex for row in rows if row.is_pinned],
        [row.id.hex for row in rows if not row.is_pinned],
    )


async def forget_before(session: TenantSession, vpg_id: UUID, moment: datetime) -> None:
    """The journal's history begins here now. What is older goes, but for tagged and pinned ones,
    which are kept by the journal as well. Three statements.
    """
    whole = moment - timedelta(milliseconds=PACK_MS)
    packs, rows, status = CheckpointPack, Checkpoint, VpgStatus
    await session.orm.execute(
        delete(packs).where(
            packs.tenant_id == session.tenant_id, packs.vpg_id == vpg_id, packs.begins_at <= whole
        )
    )
    await session.orm.execute(
        delete(rows).where(
            rows.tenant_id == session.tenant_id,
            rows.vpg_id == vpg_id,
            func.coalesce(rows.taken_at, rows.expected_at) < moment,
            rows.tag.is_(None),
            rows.is_pinned.is_(False),
        )
    )
    await session.orm.execute(
        update(status)
        .where(status.tenant_id == session.tenant_id, status.vpg_id == vpg_id)
        .values(oldest_at=func.greatest(status.oldest_at, moment))
    )
