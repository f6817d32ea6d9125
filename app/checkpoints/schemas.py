"""What the API says of checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.checkpoints.state import CheckpointKind, CheckpointState
from app.http.schemas import Input, Name, Output, Text

BUCKETS_DEFAULT, BUCKETS_MAX = 100, 500
_EXAMPLE: JsonDict = {
    "id": "ckp_01kb0000000000000000000000",
    "vpg_id": "vpg_01kb0000000000000000000000",
    "kind": "crash",
    "state": "complete",
    "tag": None,
    "expected_at": "2026-11-22T22:10:00Z",
    "taken_at": "2026-11-22T22:10:00.003121Z",
    "positions": {"host_01kb0000000000000000000000": 4711},
    "response_us": 3121,
    "hold_us": 0,
    "skew_us": 0,
    "error": None,
    "is_pinned": False,
    "pin_reason": None,
}


class CheckpointInput(Input):
    """A checkpoint that somebody asks for."""

    model_config = ConfigDict(json_schema_extra={"example": {"tag": "before the upgrade"}})

    tag: Name = Field(description="What it is known by.")


class PinInput(Input):
    """Why a checkpoint is kept."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "quarter's end"}})

    reason: Text = ""


class CheckpointOutput(Output):
    """A consistent moment of a group."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    vpg_id: str
    kind: CheckpointKind
    state: CheckpointState
    tag: str | None
    expected_at: datetime = Field(description="When it was asked for.")
    taken_at: datetime | None = Field(description="The source's time of the cut.")
    positions: dict[str, int] = Field(description="Sequences of the streams, by host.")
    response_us: int | None = Field(description="The slowest host's answer, microseconds.")
    hold_us: int | None = Field(description="The longest hold of a host, microseconds.")
    skew_us: int | None = Field(description="Between the hosts' clocks at the cut, microseconds.")
    error: dict[str, Any] | None = Field(description="Why it failed; null unless it did.")
    is_pinned: bool
    pin_reason: str | None


class Bucket(Output):
    """What a stretch of time has."""

    begins_at: datetime
    checkpoints: int
    complete: int
    failed: int
    tagged: int
    pinned: int
    response_us_max: int
    hold_us_max: int
    skew_us_max: int
    last_complete_at: datetime | None


class TimelineOutput(Output):
    """A group's checkpoints as a picture. Stretches without any are left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "begins_at": "2026-11-21T22:10:00Z",
                "ends_at": "2026-11-22T22:10:00Z",
                "bucket_seconds": 1200.0,
                "oldest_at": "2026-11-21T22:10:00Z",
                "recoverable_at": "2026-11-22T22:10:00Z",
                "buckets": [
                    {
                        "begins_at": "2026-11-22T21:50:00Z",
                        "checkpoints": 240,
                        "complete": 240,
                        "failed": 0,
                        "tagged": 0,
                        "pinned": 0,
                        "response_us_max": 5210,
                        "hold_us_max": 0,
                        "skew_us_max": 0,
                        "last_complete_at": "2026-11-22T22:09:55Z",
                    }
                ],
            }
        }
    )

    begins_at: datetime
    ends_at: datetime
    bucket_seconds: float = Field(description="Whole ten minutes where it is that or longer.")
    oldest_at: datetime | None = Field(description="The oldest moment that can be chosen.")
    recoverable_at: datetime | None = Field(description="The newest moment that can be chosen.")
    buckets: list[Bucket]
