"""`/v1/vpgs/{vpg_id}/checkpoints` and the timeline."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query, status
from pydantic import AwareDatetime

from app.checkpoints import reading, service
from app.checkpoints.identity import moment_of
from app.checkpoints.schemas import (
    BUCKETS_DEFAULT,
    BUCKETS_MAX,
    CheckpointInput,
    CheckpointOutput,
    PinInput,
    TimelineOutput,
)
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.checkpoints.timeline import load_buckets, make_frame
from app.http.dependencies import on_loop
from app.http.listing import Cursor, Limit
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.paging import LIMIT_DEFAULT
from app.kit.problems import Problem
from app.operations.schemas import OperationOutput
from app.operations.service import show_operation
from app.vpgs.service import find_status, get_vpg

router = tenant_router("checkpoints")
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ = [requires(Privilege.CHECKPOINTS_READ)]
_WRITE = [requires(Privilege.CHECKPOINTS_WRITE)]
_PATH = "/vpgs/{vpg_id}/checkpoints"
_ONE = _PATH + "/{checkpoint_id}"
_SPAN_DEFAULT, _SPAN_MAX = timedelta(days=1), timedelta(days=366)
#: No checkpoint is older, and every moment after it can be counted in milliseconds.
_EPOCH = moment_of(0)


class _Span:
    """From when to when."""

    def __init__(
        self,
        begin: Annotated[AwareDatetime | None, Query(alias="from")] = None,
        end: Annotated[AwareDatetime | None, Query(alias="to")] = None,
    ) -> None:
        self.begin, self.end = begin, end
        for moment in (begin, end):
            if moment is not None and (moment < _EPOCH or moment.year > 9000):
                raise Problem("bad_request", "There is no checkpoint at such a time.")


class _Filters:
    """What a list of checkpoints is chosen by."""

    def __init__(
        self,
        kind: Annotated[CheckpointKind | None, Query()] = None,
        state: Annotated[CheckpointState | None, Query()] = None,
        is_named: Annotated[bool, Query(description="Only tagged and pinned ones.")] = False,
    ) -> None:
        self.kind, self.state, self.is_named = kind, state, is_named


class _Page:
    """Which page of a list that has one order."""

    def __init__(self, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None) -> None:
        self.limit, self.cursor = limit, cursor


@router.get(_PATH, dependencies=_READ, summary="List a group's checkpoints")
async def list_checkpoints(
    unit: Unit,
    vpg_id: str,
    span: Annotated[_Span, Depends(on_loop(_Span))],
    filters: Annotated[_Filters, Depends(on_loop(_Filters))],
    page: Annotated[_Page, Depends(on_loop(_Page))],
) -> Page[CheckpointOutput]:
    """The newest first. A page may be short although there is another: go by `next_cursor`."""
    known = await find_status(unit, vpg_id)
    wanted = reading.Wanted(
        known.vpg_id,
        page.limit,
        span.begin,
        span.end,
        filters.kind,
        filters.state,
        filters.is_named,
        known.oldest_at,
    )
    found, following = await reading.list_checkpoints(unit, wanted, page.cursor)
    return Page(items=found, next_cursor=following)


@router.post(
    _PATH,
    dependencies=_WRITE,
    status_code=status.HTTP_202_ACCEPTED,
    summary="Take a checkpoint",
)
async def create_checkpoint(unit: Unit, vpg_id: str, wanted: CheckpointInput) -> OperationOutput:
    """A checkpoint with a tag, as soon as its hosts can. The operation's input names it."""
    vpg = await get_vpg(unit, vpg_id, lock=True)
    return show_operation(await service.take_checkpoint(unit, vpg, wanted))


@router.get(_ONE, dependencies=_READ, summary="Get a checkpoint")
async def get_checkpoint(unit: Unit, vpg_id: str, checkpoint_id: str) -> CheckpointOutput:
    """One checkpoint: where it cuts each stream, what it cost, how good it is."""
    vpg = await get_vpg(unit, vpg_id)
    return reading.show_checkpoint(await reading.get_checkpoint(unit, vpg.id, checkpoint_id))


@router.post(_ONE + ":pin", dependencies=_WRITE, summary="Keep a checkpoint")
async def pin_checkpoint(
    unit: Unit, vpg_id: str, checkpoint_id: str, wanted: PinInput
) -> CheckpointOutput:
    """Keep it beyond the history window. Repeats change nothing."""
    vpg = await get_vpg(unit, vpg_id)
    return reading.show_row(await service.pin_checkpoint(unit, vpg, checkpoint_id, wanted))


@router.post(_ONE + ":unpin", dependencies=_WRITE, summary="Keep a checkpoint no longer")
async def unpin_checkpoint(unit: Unit, vpg_id: str, checkpoint_id: str) -> CheckpointOutput:
    """Let it go with its history window. Repeats change nothing."""
    vpg = await get_vpg(unit, vpg_id)
    return reading.show_checkpoint(await service.unpin_checkpoint(unit, vpg, checkpoint_id))


@router.get("/vpgs/{vpg_id}/timeline", dependencies=_READ, summary="Get a group's timeline")
async def get_timeline(
    unit: Unit,
    vpg_id: str,
    span: Annotated[_Span, Depends(on_loop(_Span))],
    buckets: Annotated[int, Query(ge=1, le=BUCKETS_MAX)] = BUCKETS_DEFAULT,
) -> TimelineOutput:
    """How many checkpoints there are in each stretch, and how good they are: a picture at any zoom
    for the same price. The last day if nothing is said.
    """
    known = await find_status(unit, vpg_id)
    begin, end = _span(span, unit.now)
    frame = make_frame(begin, end, buckets)
    return TimelineOutput(
        begins_at=moment_of(frame.begin_ms),
        ends_at=moment_of(frame.end_ms),
        bucket_seconds=frame.width_ms / 1000,
        oldest_at=known.oldest_at,
        recoverable_at=known.recoverable_at,
        buckets=await load_buckets(unit.session, known.vpg_id, frame, known.oldest_at),
    )


def _span(span: _Span, now: datetime) -> tuple[datetime, datetime]:
    end = span.end or now
    begin = span.begin or end - _SPAN_DEFAULT
    if not timedelta(0) < end - begin <= _SPAN_MAX:
        raise Problem(
            "bad_request",
            f"A timeline is of more than nothing and at most {_SPAN_MAX.days} days.",
            hint="Send `from` and `to`, the earlier first.",
        )
    return begin, end
