"""Operations: each pair of state and event, steps, outcomes, cancelling."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from app.kit.ids import Kind, parse
from app.kit.problems import Problem
from app.kit.transitions import IllegalTransition
from app.operations import service as operations
from app.operations.state import (
    TRANSITIONS,
    UNFINISHED,
    OperationEvent,
    OperationState,
    StepState,
    move_steps,
)
from tests.app.protecting import acting, make_operation
from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(OperationState, OperationEvent))
)
def test_each_state_takes_only_its_events(state: OperationState, event: OperationEvent) -> None:
    if state in UNFINISHED:
        assert TRANSITIONS.after(state, event) not in {state} - {OperationState.RUNNING}
        return
    with pytest.raises(IllegalTransition) as refused:
        TRANSITIONS.after(state, event)
    assert (refused.value.state, refused.value.event) == (state, event)


def test_steps_before_the_one_that_runs_are_done() -> None:
    steps: list[dict[str, object]] = [{"name": name, "state": "waiting"} for name in "abc"]
    at_b = move_steps(steps, "b")
    assert [step["state"] for step in at_b] == ["done", "running", "waiting"]
    failed = move_steps(at_b, None, StepState.FAILED)
    assert [step["state"] for step in failed] == ["done", "failed", "skipped"]
    done = move_steps(at_b, None, StepState.DONE)
    assert [step["state"] for step in done] == ["done", "done", "done"]


async def _get(tenant: Caller, operation_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await tenant.get(f"/v1/operations/{operation_id}")).json()
    return answer


def _key(operation_id: str) -> UUID:
    return parse(Kind.OPERATION, operation_id)


async def test_an_operation_tells_how_far_it_is_and_how_it_came_out(service: Service) -> None:
    tenant = await service.make_tenant()
    good, bad = [await make_operation(service, tenant, name) for name in ("good", "bad")]
    async with acting(service, tenant) as (session, _):
        assert await operations.advance(session, _key(good), NOW, progress=0.5, step="send")
    shown = await _get(tenant, good)
    assert (shown["state"], shown["progress"], shown["outcome"]) == ("running", 0.5, None)
    assert shown["steps"] == [
        {"name": "compare", "state": "done"},
        {"name": "send", "state": "running"},
    ]
    async with acting(service, tenant) as (session, _):
        await operations.succeed(session, _key(good), NOW, {"bytes": 7})
        happened = await operations.fail(session, _key(bad), NOW, Problem("internal"))
        assert happened.kind == "operations.failed"
    shown = await _get(tenant, good)
    assert (shown["state"], shown["progress"], shown["outcome"]) == ("succeeded", 1, {"bytes": 7})
    assert shown["moved_by"] == []
    shown = await _get(tenant, bad)
    assert (shown["state"], shown["error"]["code"]) == ("failed", "internal")
    async with acting(service, tenant) as (session, _):
        with pytest.raises(IllegalTransition):
            await operations.advance(session, _key(good), NOW)
    failed = (await tenant.get("/v1/operations", params={"state": "failed"})).json()["items"]
    assert [one["id"] for one in failed] == [bad]


async def test_what_waits_is_cancelled_at_once_and_what_runs_is_asked(service: Service) -> None:
    tenant = await service.make_tenant()
    waits, runs = [await make_operation(service, tenant, name) for name in ("waits", "runs")]
    answer = await tenant.post(f"/v1/operations/{waits}:cancel")
    assert answer.json()["state"] == "cancelled"
    assert (await tenant.post(f"/v1/operations/{waits}:cancel")).status_code == 200
    async with acting(service, tenant) as (session, _):
        assert await operations.advance(session, _key(runs), NOW)
    answer = await tenant.post(f"/v1/operations/{runs}:cancel")
    assert (answer.json()["state"], answer.json()["finished_at"]) == ("running", None)
    async with acting(service, tenant) as (session, _):
        assert not await operations.advance(session, _key(runs), NOW)
        await operations.end_cancelled(session, _key(runs), NOW)
    assert (await _get(tenant, runs))["state"] == "cancelled"


async def test_what_is_over_is_not_cancelled(service: Service) -> None:
    tenant = await service.make_tenant()
    over = await make_operation(service, tenant, "over")
    async with acting(service, tenant) as (session, _):
        await operations.succeed(session, _key(over), NOW, {})
    answer = await tenant.post(f"/v1/operations/{over}:cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_cancellable")
