"""What the API says of keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import Base64Bytes, ConfigDict, Field, StringConstraints, WithJsonSchema

from app.http.schemas import Input, Name, Output, Text

_Key = Annotated[
    Base64Bytes,
    Field(min_length=32, max_length=32),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9+/]{43}=$"}),
]
_Reason = Annotated[Text, StringConstraints(min_length=3, max_length=500)]


class RecoveryKeyInput(Input):
    """Who wants the tenant's key says so twice."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "tenant_name": "Acme Ltd",
                "reason": "kept in the safe",
                "public_key": "CSotfFhqMTZCjFNN0pbfQWkbYQ8VmiMd5bdZ9oUxrVg=",
                "code": "123456",
            }
        }
    )

    tenant_name: Name = Field(description="Typed to confirm.")
    reason: _Reason
    public_key: _Key = Field(description="An X25519 key made for this call, 32 bytes, Base64.")
    code: Annotated[str, StringConstraints(pattern=r"^[0-9]{6}$")] | None = Field(
        default=None, description="A one-time code: people in a session must send one."
    )


class RecoveryKeyOutput(Output):
    """The tenant's key, for the holder of the request's key alone."""

    tenant_id: str
    sealed: str = Field(description="An envelope with the key file, Base64.")
