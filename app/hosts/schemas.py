"""What the API says of hosts and of how they join."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Name, Output

JOIN_SECONDS_MAX = 900
Pem = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]


class JoinTokenInput(Input):
    """A right to join, as it is made."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "hypervisor-7", "lifetime_seconds": 900}}
    )

    name: Name = Field(description="The host's name, for people.")
    site_id: str | None = Field(default=None, description="Where the host is.")
    lifetime_seconds: int = Field(default=JOIN_SECONDS_MAX, ge=10, le=JOIN_SECONDS_MAX)


class JoinTokenOutput(Output):
    """A right to join one host, once, without its secret."""

    id: str
    name: str
    site_id: str | None
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


class JoinTokenCreated(JoinTokenOutput):
    """A new right to join, with the token that is shown this once."""

    token: str = Field(description="For `holdfast-agent enrol --token`. It is not kept.")


class EnrolmentInput(Input):
    """What a host sends with its join token."""

    certificate_request: Pem = Field(
        description="PEM. Only its public key is taken: ECDSA P-256 or Ed25519."
    )
    agent_version: Version


class RenewalInput(Input):
    """What a host sends to have its certificate renewed, also up to 7 days after its end."""

    certificate: Pem = Field(description="The one that it has, PEM.")
    certificate_request: Pem
    signature: Annotated[str, StringConstraints(max_length=400)] = Field(
        description="Base64: the old key's signature of the request, see FORMAT of renewals."
    )
    agent_version: Version


class CertificateOutput(Output):
    """A host's identity."""

    tenant_id: str
    host_id: str
    uri: str = Field(description="The name in the certificate.")
    certificate: str = Field(description="PEM, followed by the tenant's intermediate.")
    root_certificate: str = Field(description="PEM: what the host believes servers by.")
    expires_at: datetime
    renew_at: datetime = Field(description="Half of its life.")
    control_doors: list[str] = Field(
        description="Where the host finds its managers, HOST:PORT, the best first."
    )


class HostOutput(Output):
    """A hypervisor machine."""

    id: str
    name: str
    site_id: str | None
    state: str
    agent_version: str
    created_at: datetime
    certificate_expires_at: datetime
    revoked_at: datetime | None


class HostHealth(StrEnum):
    """`degraded`: heard of, but not protecting all that it should. `down`: not heard of. `unknown`:
    no manager said lately how it is.
    """

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


class HostDetail(HostOutput):
    """A hypervisor machine, and how it is."""

    health: HostHealth
    health_reason: str | None = Field(
        description="Why it is not up: `silent`, `tap_down`, or why a group on it has a gap."
    )
    health_since: datetime | None = Field(description="When it became so.")
    seen_at: datetime | None = Field(
        description="When it was heard of, as entered: at a change, else once a minute."
    )


class RootOutput(Output):
    """The deployment's root, public."""

    certificate: str = Field(description="PEM.")
    sha256: str = Field(description="Of its DER, as join tokens pin it.")
    time: datetime = Field(description="What time the service has it: hosts compare their clocks.")
