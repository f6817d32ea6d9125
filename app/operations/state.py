"""What moves an operation on. Pure."""

from __future__ import annotations

from enum import StrEnum

from app.kit.transitions import Transitions


class OperationState(StrEnum):
    """Three of them are ends, and each end says how it came out."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationEvent(StrEnum):
    """What happens to an operation."""

    ADVANCE = "advance"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


class StepState(StrEnum):
    """Where a step stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


_S, _E = OperationState, OperationEvent
TRANSITIONS = Transitions(
    {
        (_S.QUEUED, _E.ADVANCE): _S.RUNNING,
        (_S.QUEUED, _E.SUCCEED): _S.SUCCEEDED,
        (_S.QUEUED, _E.FAIL): _S.FAILED,
        (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _E.ADVANCE): _S.RUNNING,
        (_S.RUNNING, _E.SUCCEED): _S.SUCCEEDED,
        (_S.RUNNING, _E.FAIL): _S.FAILED,
        (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
    }
)
UNFINISHED = frozenset({_S.QUEUED, _S.RUNNING})


def move_steps(
    steps: list[dict[str, object]], current: str | None, end: StepState | None = None
) -> list[dict[str, object]]:
    """The steps when `current` has begun: those before it are done. With `end` the step that runs
    ends so, and what did not begin is skipped; ValueError for a step that there is not.
    """
    names = [step["name"] for step in steps]
    if current is not None:
        place = names.index(current)
        states = [StepState.DONE] * place + [StepState.RUNNING]
        states += [StepState.WAITING] * (len(steps) - place - 1)
    else:
        states = [StepState(str(step["state"])) for step in steps]
    if end is not None:
        unbegun = StepState.DONE if end == StepState.DONE else StepState.SKIPPED
        ends = {StepState.RUNNING: end, StepState.WAITING: unbegun}
        states = [ends.get(state, state) for state in states]
    return [{**step, "state": state.value} for step, state in zip(steps, states, strict=True)]
