"""What the API says of API keys, and of grants."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Name, Output
from app.identity.privileges import Role

GRANTS_MAX = 100
Scope = Annotated[
    str,
    StringConstraints(max_length=80),
    Field(
        description="Over what: the id of the tenant, of a site or of a group.",
        examples=["site_01hq3v5k8m9n2p4r6s7t8w9x0z"],
    ),
]


class GrantInput(Input):
    """A role over a scope, as it is given."""

    role: Role
    scope: Scope | None = Field(default=None, description="The whole tenant without.")


class GrantOutput(Output):
    """A role over a scope."""

    role: Role
    scope: Scope


class GrantsInput(Input):
    """All that somebody is granted."""

    grants: list[GrantInput] = Field(max_length=GRANTS_MAX)


class ApiKeyInput(GrantInput):
    """An API key as it is made."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "ci", "role": "viewer", "expires_at": "2027-01-01T00:00:00Z"}
        }
    )

    name: Name
    expires_at: AwareDatetime | None = Field(
        default=None, description="Until when it is accepted; never ends without."
    )


class ApiKeyOutput(Output):
    """A machine's credential, without its secret."""

    id: str
    name: str
    grants: list[GrantOutput]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None


class ApiKeyCreated(ApiKeyOutput):
    """A new credential, with the token that is shown this once."""

    token: str = Field(description="Send it as `Authorization: Bearer`. It is not kept.")
