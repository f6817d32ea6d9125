"""Open, advance and end operations.

Whoever does the work calls `advance`, then `succeed` or `fail`, each in a transaction of its own
with what was done. They return the event of it, for `write_ledger` at the transaction's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.events.ledger import Circumstances, Happening
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem
from app.models import Operation
from app.models.base import key_of
from app.operations.schemas import OperationOutput, StepOutput
from app.operations.state import (
    TRANSITIONS,
    UNFINISHED,
    OperationEvent,
    OperationState,
    StepState,
    move_steps,
)
from host_agent.wire.errors import HoldfastError

#: The part of an operation's input that is for who does the work: never shown. A ticket is in it.
ORDER = "order"


@dataclass(frozen=True)
class Wanted:
    """An operation as it is opened. `subject` is an id as users see it."""

    kind: str
    subject: str
    input: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[str] = ()
    is_cancellable: bool = True
    due_at: datetime | None = None


def open_operation(session: TenantSession, wanted: Wanted, by: Circumstances) -> Operation:
    """Enter an operation, queued."""
    operation = Operation(
        tenant_id=session.tenant_id,
        id=new_uuid(by.at),
        created_at=by.at,
        version=1,
        kind=wanted.kind,
        subject=wanted.subject,
        state=OperationState.QUEUED,
        progress=0.0,
        steps=[{"name": name, "state": StepState.WAITING.value} for name in wanted.steps],
        input=wanted.input,
        outcome=None,
        error=None,
        is_cancellable=wanted.is_cancellable,
        requested_by=by.actor,
        due_at=wanted.due_at,
        started_at=None,
        cancel_requested_at=None,
        finished_at=None,
    )
    session.orm.add(operation)
    return operation


async def advance(
    session: TenantSession,
    operation_id: UUID,
    now: datetime,
    *,
    progress: float | None = None,
    step: str | None = None,
) -> bool:
    """It runs, and is so far (0 to 1) in this step. False: it is to be cancelled, so stop, undo
    and call `end_cancelled`. IllegalTransition at its end.
    """
    operation = await _locked(session, operation_id)
    _move(operation, OperationEvent.ADVANCE)
    operation.started_at = operation.started_at or now
    if progress is not None:
        operation.progress = min(1.0, max(operation.progress, progress))
    if step is not None:
        operation.steps = move_steps(operation.steps, step)
    return operation.cancel_requested_at is None


async def succeed(
    session: TenantSession, operation_id: UUID, now: datetime, outcome: dict[str, Any]
) -> Happening:
    """It is done, and this came out; IllegalTransition if it had ended."""
    operation = await _locked(session, operation_id)
    operation.outcome, operation.progress = outcome, 1.0
    return _end(operation, OperationEvent.SUCCEED, StepState.DONE, now)


async def fail(
    session: TenantSession, operation_id: UUID, now: datetime, error: HoldfastError
) -> Happening:
    """It failed, for this reason; IllegalTransition if it had ended."""
    operation = await _locked(session, operation_id)
    said = error.as_dict()
    operation.error = {"code": said.pop("error"), **said}
    return _end(operation, OperationEvent.FAIL, StepState.FAILED, now)


async def end_cancelled(session: TenantSession, operation_id: UUID, now: datetime) -> Happening:
    """What was to be cancelled has stopped and is undone; IllegalTransition if it had ended."""
    operation = await _locked(session, operation_id)
    return _end(operation, OperationEvent.CANCEL, StepState.SKIPPED, now)


async def cancel_operation(unit: TenantUnit, operation: Operation) -> None:
    """End what has not begun; ask what runs to stop. Problem `not_cancellable`. Repeatable."""
    if operation.state not in UNFINISHED or not operation.is_cancellable:
        if operation.state == OperationState.CANCELLED:
            return
        raise Problem(
            "not_cancellable",
            f"The operation is {operation.state}.",
            hint="Wait for its end." if operation.state in UNFINISHED else "It is over.",
        )
    if operation.cancel_requested_at is not None:
        return
    operation.cancel_requested_at = unit.now
    operation.version += 1
    if operation.state == OperationState.QUEUED:
        happened = _end(operation, OperationEvent.CANCEL, StepState.SKIPPED, unit.now)
        unit.happenings.append(happened)
    shown = show(Kind.OPERATION, operation.id)
    unit.note("operations.cancel_requested", shown, kind=operation.kind)


async def find_unfinished(session: TenantSession, kind: str, subject: str) -> Operation | None:
    """The operation of this kind on this subject that is not over; the oldest one."""
    found = await session.orm.scalars(
        select(Operation)
        .where(
            Operation.tenant_id == session.tenant_id,
            Operation.kind == kind,
            Operation.subject == subject,
            Operation.state.in_(sorted(UNFINISHED)),
        )
        .order_by(Operation.created_at)
        .limit(1)
    )
    return found.one_or_none()


async def find_due(
    session: TenantSession, kinds: Sequence[str], now: datetime
) -> Sequence[Operation]:
    """Operations of these kinds whose time has come, locked; those that another has are left."""
    found = await session.orm.scalars(
        select(Operation)
        .where(
            Operation.tenant_id == session.tenant_id,
            Operation.kind.in_(kinds),
            Operation.state == OperationState.QUEUED,
            Operation.due_at <= now,
        )
        .order_by(Operation.due_at)
        .with_for_update(skip_locked=True)
    )
    return found.all()


async def get_operation(unit: TenantUnit, operation_id: str, *, lock: bool = False) -> Operation:
    """The tenant's operation; Problem `not_found` for every other id."""
    return await find(unit, Operation, Kind.OPERATION, operation_id, lock=lock)


def show_operation(operation: Operation) -> OperationOutput:
    """As the API shows it."""
    state = OperationState(operation.state)
    return OperationOutput(
        id=show(Kind.OPERATION, operation.id),
        kind=operation.kind,
        subject=operation.subject,
        state=state,
        progress=operation.progress,
        steps=[StepOutput(**step) for step in operation.steps],
        input={name: value for name, value in operation.input.items() if name != ORDER},
        outcome=operation.outcome,
        error=operation.error,
        is_cancellable=operation.is_cancellable and state in UNFINISHED,
        moved_by=TRANSITIONS.events_of(state),
        requested_by=operation.requested_by,
        created_at=operation.created_at,
        due_at=operation.due_at,
        started_at=operation.started_at,
        cancel_requested_at=operation.cancel_requested_at,
        finished_at=operation.finished_at,
    )


async def _locked(session: TenantSession, operation_id: UUID) -> Operation:
    return await session.orm.get_one(
        Operation,
        key_of(session.tenant_id, operation_id),
        with_for_update=True,
        populate_existing=True,
    )


def _move(operation: Operation, event: OperationEvent) -> None:
    operation.state = TRANSITIONS.after(OperationState(operation.state), event)
    operation.version += 1


def _end(operation: Operation, event: OperationEvent, steps: StepState, now: datetime) -> Happening:
    _move(operation, event)
    operation.steps = move_steps(operation.steps, None, steps)
    operation.finished_at = now
    data = {"kind": operation.kind, "subject": operation.subject, "error": operation.error}
    shown = show(Kind.OPERATION, operation.id)
    return Happening(f"operations.{operation.state}", shown, data)
