"""Kinds and states of checkpoints. Pure."""

from __future__ import annotations

from enum import StrEnum

from app.kit.transitions import Transitions


class CheckpointKind(StrEnum):
    """What a checkpoint promises; a person's `tagged` one is taken as a `crash` one is."""

    CRASH = "crash"
    APPLICATION = "application"
    TAGGED = "tagged"


class CheckpointState(StrEnum):
    """`complete`: the journal of every stream of the group has it."""

    PENDING = "pending"
    COMPLETE = "complete"
    FAILED = "failed"


class CheckpointEvent(StrEnum):
    """What happens to a checkpoint."""

    STORE = "store"
    FAIL = "fail"


TRANSITIONS = Transitions(
    {
        (CheckpointState.PENDING, CheckpointEvent.STORE): CheckpointState.COMPLETE,
        (CheckpointState.PENDING, CheckpointEvent.FAIL): CheckpointState.FAILED,
    }
)
#: How a pack writes a kind.
CODES = {CheckpointKind.CRASH: 1, CheckpointKind.APPLICATION: 2, CheckpointKind.TAGGED: 3}
KINDS = {code: kind for kind, code in CODES.items()}
