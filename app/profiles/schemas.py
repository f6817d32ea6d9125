"""What the API says of service profiles."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict
from pydantic.config import JsonDict

from app.http.schemas import Input, Name, Output, Text
from app.vpgs.settings import Settings

_EXAMPLE: JsonDict = {
    "name": "gold",
    "description": "A day back, to the second.",
    "settings": {"rpo_seconds": 5, "checkpoint_seconds": 5, "history_hours": 24},
}


class ProfileInput(Input):
    """A service profile as it is made or replaced."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    name: Name
    description: Text = ""
    settings: Settings


class ProfileOutput(Output):
    """Settings with a name. A change of it changes no group that was made from it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_EXAMPLE,
                "id": "prof_01kb0000000000000000000000",
                "created_at": "2026-11-22T22:10:00Z",
            }
        }
    )

    id: str
    name: str
    description: str
    settings: Settings
    created_at: datetime
