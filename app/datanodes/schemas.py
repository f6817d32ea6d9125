"""What the API says of data nodes and of the stores of journals."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from app.hosts.schemas import Pem, Version
from app.http.schemas import Input, Name, Output
from app.sites.schemas import Territory

JOIN_SECONDS_MAX = 900
#: The store whose journals data nodes write, where nothing else is said.
DEFAULT_STORE = "default"


def _door(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) <= 65_535):
        raise ValueError("write it as HOST:PORT")
    return text


Door = Annotated[
    str,
    StringConstraints(pattern=r"^[!-~]{3,255}$"),
    AfterValidator(_door),
    Field(description="HOST:PORT."),
]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Wall = Literal["static", "folder", "shared"]


class DataNodeInput(Input):
    """A data node as it is added."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "zrh-1", "territory": "CH", "doors": ["zrh-1.example.net:7440"]}
        }
    )

    name: Name
    territory: Territory
    doors: list[Door] = Field(
        min_length=1, max_length=8, description="Where hosts reach it, the best first."
    )


class DataNodeOutput(Output):
    """A machine that receives streams and serves restores."""

    id: str
    name: str
    territory: str
    doors: list[str]
    state: str
    agent_version: str
    created_at: datetime
    certificate_expires_at: datetime | None
    seen_at: datetime | None = Field(description="To the minute.")


class DataNodeJoin(DataNodeOutput):
    """A data node with the token by which it joins, shown this once."""

    token: str = Field(description="For `holdfast datanode join`. It is not kept.")
    token_expires_at: datetime


class DataNodePage(Output):
    """Data nodes, by their age."""

    items: list[DataNodeOutput]


class NodeEnrolmentInput(Input):
    """What a data node sends with its join token."""

    certificate_request: Pem = Field(
        description="PEM. Only its public key is taken: ECDSA P-256 or Ed25519."
    )
    agent_version: Version


class NodeCertificateOutput(Output):
    """A data node's identity."""

    node_id: str
    uri: str = Field(description="The name in the certificate.")
    certificate: str = Field(description="PEM, followed by the authority of data nodes.")
    root_certificate: str = Field(description="PEM: what the node believes servers by.")
    expires_at: datetime


class JournalStoreInput(Input):
    """An object store for journals as it is added."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "default",
                "territory": "CH",
                "url": "s3://journals?endpoint=https://s3.example.net&region=eu",
                "wall": "static",
            }
        }
    )

    name: Name
    territory: Territory
    url: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="file:///folder or s3://bucket/prefix?endpoint=…"
    )
    wall: Wall = Field(
        description="What keeps tenants apart in it: `static`, a credential for each tenant; "
        "`shared`, one for all, which is warned of; `folder`, a local one."
    )
    access_key_id: Secret | None = Field(default=None, description="Of a shared one.")
    secret_access_key: Secret | None = None


class JournalStoreOutput(Output):
    """An object store for journals, without its credentials."""

    id: str
    name: str
    territory: str
    url: str
    wall: str
    created_at: datetime


class JournalStorePage(Output):
    """Stores, by their age."""

    items: list[JournalStoreOutput]


class StoreCredentialInput(Input):
    """A tenant's own credential: it may create, read and list below the tenant's prefix alone."""

    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None = None


class StoreCredentialOutput(Output):
    """That a tenant has a credential of a store; the credential is not shown."""

    tenant_id: str
    store_id: str
    changed_at: datetime
