"""What the API says of entries of the provider's staff."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Output, Text

MINUTES_MAX = 60


class EnterInput(Input):
    """Why somebody enters, and for how long."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"reason": "ticket 4711: a group is late", "minutes": 30}}
    )

    reason: Annotated[Text, StringConstraints(min_length=3, max_length=500)] = Field(
        description="The tenant reads it."
    )
    minutes: int = Field(default=30, ge=1, le=MINUTES_MAX)


class EntryOutput(Output):
    """Somebody of the provider's staff in the tenant's scope."""

    id: str
    by: str = Field(description="The key of the provider's staff.", examples=["pky_01"])
    reason: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = Field(description="When it was ended before its time.")


class EntryCreated(EntryOutput):
    """An entry and its token, shown this once."""

    token: str = Field(description="The bearer token of tenants' routes. It only reads.")


class ProviderActOutput(Output):
    """Something that the provider's staff did."""

    place: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    address: str
    request_id: str


class ProviderActPage(Output):
    """Acts after a place, in order."""

    items: list[ProviderActOutput]
    after: int = Field(description="Send it as `after` for what comes next.")
