"""What the API says of operations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.http.schemas import Output
from app.operations.state import OperationState, StepState

EXAMPLE: JsonDict = {
    "id": "op_01kb0000000000000000000000",
    "kind": "vpg.force_sync",
    "subject": "vpg_01kb0000000000000000000000",
    "state": "running",
    "progress": 0.4,
    "steps": [{"name": "compare", "state": "running"}],
    "input": {"full": False},
    "outcome": None,
    "error": None,
    "is_cancellable": True,
    "moved_by": ["advance", "succeed", "fail", "cancel"],
    "requested_by": "key_01kb0000000000000000000000",
    "created_at": "2026-11-22T22:10:00Z",
    "due_at": None,
    "started_at": "2026-11-22T22:10:01Z",
    "cancel_requested_at": None,
    "finished_at": None,
}


class StepOutput(Output):
    """A part of an operation."""

    name: str
    state: StepState


class OperationOutput(Output):
    """Work that takes time."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    id: str
    kind: str
    subject: str = Field(description="The id of what it is done to.")
    state: OperationState
    progress: float = Field(ge=0, le=1)
    steps: list[StepOutput]
    input: dict[str, Any]
    outcome: dict[str, Any] | None = Field(description="How it came out; null before its end.")
    error: dict[str, Any] | None = Field(
        description="With `code`, `message`, `hint`, `retryable`; null unless it failed."
    )
    is_cancellable: bool
    moved_by: list[str] = Field(description="What would move it on; empty at its end.")
    requested_by: str
    created_at: datetime
    due_at: datetime | None = Field(description="It does not begin before; null: at once.")
    started_at: datetime | None
    cancel_requested_at: datetime | None
    finished_at: datetime | None
