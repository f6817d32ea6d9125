"""What the API says of people."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from app.http.schemas import Input, Name, Output
from app.identity.schemas import GrantInput, GrantOutput
from app.users.passwords import PASSWORD_LENGTH_MIN

Login = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@+-]{0,79}$"),
    Field(description="What the person logs in with: lower-case letters, digits, . _ @ + -"),
]


class UserInput(GrantInput):
    """A person as an administrator invites them."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "ada", "display_name": "Ada Lovelace", "role": "operator"}
        }
    )

    name: Login
    display_name: Name


class UserOutput(Output):
    """A person with a local account."""

    id: str
    name: str
    display_name: str
    grants: list[GrantOutput]
    state: str
    created_at: datetime


class UserInvited(UserOutput):
    """A person and the invitation that is shown this once."""

    invitation: str = Field(description="The bearer token of POST /v1/invitations:accept.")
    invitation_expires_at: datetime


class AcceptInput(Input):
    """What the invited person chooses."""

    password: Annotated[SecretStr, Field(min_length=PASSWORD_LENGTH_MIN, max_length=256)]


class AcceptOutput(Output):
    """What the authenticator needs, shown this once."""

    name: str
    code_secret: str = Field(description="Base 32, for the authenticator.")
    code_uri: str = Field(description="The same as an otpauth:// address, for a QR code.")


class LoginInput(Input):
    """Who comes in."""

    tenant: Annotated[str, StringConstraints(max_length=40)]
    name: Annotated[str, StringConstraints(max_length=80)]
    password: Annotated[SecretStr, Field(max_length=256)]
    code: Annotated[str, StringConstraints(max_length=10)] = Field(
        description="The authenticator's six digits. Each works once."
    )


class LoginOutput(Output):
    """A session."""

    token: str = Field(description="Send it as `Authorization: Bearer`.")
    expires_at: datetime = Field(description="At the latest; without a call for 30 min earlier.")


class SelfOutput(Output):
    """The caller."""

    tenant_id: str
    actor: str
    privileges: list[str]
