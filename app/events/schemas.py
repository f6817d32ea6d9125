"""What the API says of events and of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from app.http.schemas import Output


class EventOutput(Output):
    """Something that happened."""

    place: int = Field(description="Its number in the tenant's events: no gaps, by commit.")
    id: str
    at: datetime
    kind: str
    subject: str = Field(description="The id of what it happened to.")
    actor: str
    data: dict[str, Any]


class EventPage(Output):
    """Events after a place, in order."""

    items: list[EventOutput]
    after: int = Field(description="Send it as `after` for what comes next.")


class AuditEntryOutput(Output):
    """Something that somebody did, or tried to."""

    place: int
    at: datetime
    actor: str
    action: str
    subject: str
    outcome: str = Field(description="`done` or `denied`.")
    details: dict[str, Any]
    address: str
    request_id: str
    previous_hash: str = Field(description="SHA-256 of the entry before, in hexadecimal digits.")
    hash: str


class AuditPage(Output):
    """Audit entries after a place, in order."""

    items: list[AuditEntryOutput]
    after: int = Field(description="Send it as `after` for what comes next.")


class AuditVerification(Output):
    """Whether the chain of the whole log holds."""

    is_intact: bool
    entries: int
    head: str = Field(description="The hash of the newest entry, in hexadecimal digits.")
    first_bad_place: int | None
