"""What the API says of plans, and of acts that wait before they destroy."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from app.http.schemas import Input, Output, Text
from app.vpgs.schemas import MEMBERS_MAX, Id
from app.vpgs.settings import Settings

_TypedName = Annotated[str, StringConstraints(max_length=200)]
_Code = Annotated[str, StringConstraints(max_length=16)]


class PlanInput(Input):
    """A change whose effects are asked for: settings and recovery site, or machines that go out, or
    the end of the group.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"settings": {"rpo_seconds": 10, "history_hours": 12}}}
    )

    settings: Settings | None = Field(default=None, description="All of them, as they shall be.")
    recovery_site_id: Id | None = None
    remove_machines: list[Id] = Field(default_factory=list, max_length=MEMBERS_MAX)
    delete: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        changes = self.settings is not None or self.recovery_site_id is not None
        if [changes, bool(self.remove_machines), self.delete].count(True) != 1:
            raise ValueError("wants one of: settings or recovery_site_id, remove_machines, delete")
        return self


class EffectOutput(Output):
    """One thing that would change."""

    what: str
    before: Any
    after: Any
    says: str
    is_undoable: bool = Field(description="Whether changing it back brings back all.")
    rpo: str | None = Field(description="What it does to the RPO; null: nothing.")
    history_seconds_lost: float | None = Field(description="At most; null: none.")
    checkpoints_lost: int | None = Field(description="Null: none, or not known before.")
    bytes_to_sync: int | None = Field(description="At most, when it is undone; null: none.")


_EXAMPLE: JsonDict = {
    "id": "plan_01kb0000000000000000000000",
    "vpg_id": "vpg_01kb0000000000000000000000",
    "change": {"settings": {"history_hours": 12}},
    "effects": [
        {
            "what": "history_hours",
            "before": 24,
            "after": 12,
            "says": "What is older than 12 h is folded away; tagged and pinned checkpoints stay.",
            "is_undoable": False,
            "rpo": None,
            "history_seconds_lost": 43200.0,
            "checkpoints_lost": 8640,
            "bytes_to_sync": None,
        }
    ],
    "destroys_history": True,
    "delay_seconds": 86400,
    "created_at": "2026-11-22T22:10:00Z",
    "expires_at": "2026-11-22T22:25:00Z",
}


class PlanOutput(Output):
    """What a change would do. It lives 15 minutes, and while nobody else changes the group."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    vpg_id: str
    change: dict[str, Any]
    effects: list[EffectOutput]
    destroys_history: bool = Field(description="`:apply` wants the group's name and a reason.")
    delay_seconds: int = Field(description="So long it can still be cancelled.")
    created_at: datetime
    expires_at: datetime


class ConfirmInput(Input):
    """What a destroying act wants."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"confirm_name": "web shop", "reason": "contract ended"}}
    )

    confirm_name: _TypedName | None = Field(default=None, description="The group's name, typed.")
    reason: Text | None = None
    code: _Code | None = Field(default=None, description="A person's newest one-time code.")


class ApplyInput(ConfirmInput):
    """A plan that is to be done."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"plan_id": "plan_01kb0000000000000000000000"}}
    )

    plan_id: Id
