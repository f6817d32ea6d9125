"""What the API says of API keys."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, ConfigDict, Field

from app.http.schemas import Input, Name, Output
from app.identity.privileges import Role


class ApiKeyInput(Input):
    """An API key as it is made."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "ci", "role": "viewer", "expires_at": "2027-01-01T00:00:00Z"}
        }
    )

    name: Name
    role: Role
    expires_at: AwareDatetime | None = Field(
        default=None, description="Until when it is accepted; never ends without."
    )


class ApiKeyOutput(Output):
    """A machine's credential, without its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None


class ApiKeyCreated(ApiKeyOutput):
    """A new credential, with the token that is shown this once."""

    token: str = Field(description="Send it as `Authorization: Bearer`. It is not kept.")
