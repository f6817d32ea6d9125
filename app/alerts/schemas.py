"""What the API says of alerts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field

from app.http.schemas import Output


class Level(StrEnum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class AlertOutput(Output):
    """Something that needs somebody."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "alr_01kb0000000000000000000000",
                "code": "rpo.exceeded",
                "level": "error",
                "subject": "vpg_01kb0000000000000000000000",
                "message": "The RPO is 34 s; 10 s were promised.",
                "data": {"stage": "network"},
                "raised_at": "2026-11-22T22:10:00Z",
                "acknowledged_at": None,
                "acknowledged_by": None,
                "cleared_at": None,
            }
        }
    )

    id: str
    code: str
    level: Level
    subject: str = Field(description="The id of what it is about.")
    message: str
    data: dict[str, Any]
    raised_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    cleared_at: datetime | None = Field(description="When its cause was over; null while open.")
