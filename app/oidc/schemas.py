"""What the API says of a tenant's issuer and of logins through it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from app.http.schemas import Input, Output
from app.identity.schemas import GrantInput

_MAPPINGS_MAX = 200
Plain = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=255)]
Group = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Port = Annotated[int, Field(ge=1024, le=65_535)]
Opaque = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,128}$")]


class MappingInput(GrantInput):
    """What a group of the issuer is granted."""

    group: Group


class IssuerInput(Input):
    """An issuer as an administrator configures it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "url": "https://login.example.com",
                "client_id": "holdfast",
                "client_secret": "as the issuer gave it",
                "groups_claim": "groups",
                "mappings": [{"group": "dr-administrators", "role": "administrator"}],
            }
        }
    )

    url: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=500)] = Field(
        description="The issuer exactly as it names itself."
    )
    client_id: Plain
    client_secret: Annotated[SecretStr, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="Null: the one that is kept."
    )
    scopes: list[Plain] = Field(
        default=["profile"], max_length=20, description="Asked for beside `openid`."
    )
    groups_claim: Plain = Field(default="groups", description="The claim that lists groups.")
    mappings: list[MappingInput] = Field(
        max_length=_MAPPINGS_MAX, description="Who is in none of these groups does not come in."
    )


class IssuerOutput(Output):
    """A tenant's issuer, without its secret."""

    url: str
    client_id: str
    scopes: list[str]
    groups_claim: str
    mappings: list[MappingInput]
    redirect_uri: str = Field(description="What has to be registered at the issuer.")
    login_url: str = Field(description="Where a person begins, with a browser.")
    is_enforced: bool = Field(description="Whether local logins are refused, but for one account.")
    enforced_at: datetime | None
    break_glass_user_id: str | None = Field(description="The one account that may log in locally.")
    created_at: datetime


class EnforceInput(Input):
    """How the tenant is reached when its issuer is away."""

    break_glass_user_id: Annotated[str, StringConstraints(max_length=80)] = Field(
        description="An active local administrator of the whole tenant.",
        examples=["usr_01hq3v5k8m9n2p4r6s7t8w9x0z"],
    )


class EnteredOutput(Output):
    """Somebody came in with a browser; the session is in a cookie."""

    actor: str
    expires_at: datetime = Field(description="At the latest; without a call for 30 min earlier.")


class RedeemInput(Input):
    """What a command got from the browser, and the secret that only the command has."""

    tenant: Annotated[str, StringConstraints(max_length=40)]
    code: Annotated[str, StringConstraints(max_length=2000)]
    verifier: Annotated[str, StringConstraints(max_length=200)]
