"""Messages of the control door between data nodes and their manager. FORMAT.md 11.

The rules of `control` hold: facts may carry more than a reader knows, orders are understood wholly.
A tenant's record is an order whose inside may carry more: see `serving`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from host_agent.wire import control, limits
from host_agent.wire.control import (
    NOTHING,
    AgentVersion,
    Fact,
    Failure,
    Hex32,
    Name,
    Number,
    Order,
    Seconds,
    Word,
)

Service = Literal["ingest", "restore"]
Pem = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/=\- \n]{1,16384}\Z")]


class TenantRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data node needs to serve a tenant alone; `record` null: serve it no longer."""

    tenant: Name
    version: Number
    record: msgspec.Raw = NOTHING


class NodeWelcome(Order, frozen=True, tag="node_welcome"):
    """The manager's answer to NODE_HELLO: how often it wants facts."""

    facts_seconds: Seconds
    time_ns: Number


class Records(Order, frozen=True, tag="records"):
    """Records of some tenants. Of each tenant the highest version holds, whoever sends it.

    `tenants`, with the last of what a connection begins with: the node serves these and no others.
    """

    records: list[TenantRecord]
    tenants: list[Name] | None = None


class NodeCertificate(Order, frozen=True, tag="certificate"):
    """The answer to a certificate request, PEM; or why there is none."""

    request: Number
    certificate: Pem | None = None
    error: Failure | None = None


class NodeHello(Fact, frozen=True, tag="node_hello"):
    """First on each connection: which version of each tenant's record I hold."""

    agent_version: AgentVersion
    time_ns: Number
    records: Annotated[dict[Name, Number], Meta(max_length=limits.SERVED_TENANTS_MAX)]


class CertificateRequest(Fact, frozen=True, tag="certificate_request"):
    """Sign this key for a tenant's service, or, without a tenant, for this node itself."""

    request: Number
    key_request: Pem
    tenant: Name | None = None
    service: Service | None = None


class StreamFacts(msgspec.Struct, frozen=True):
    """What ingest knows of a stream. Positions are of `generation`; `source_time_ns` is that of the
    newest stored write, `safe_at_ns` the node's own time before which everything is stored.
    """

    tenant: Name
    vpg: Name
    host: Name
    connected: bool
    generation: Hex32 | None
    epoch: Number
    received_seq: Number
    stored_seq: Number
    source_time_ns: Number | None
    safe_at_ns: Number | None
    state: Word


class NodeFacts(Fact, frozen=True, tag="facts"):
    """Streams that changed since they were last told; on each connection first all of them."""

    time_ns: Number
    streams: Annotated[list[StreamFacts], Meta(max_length=limits.FACTS_STREAMS_MAX)]


FromManager = NodeWelcome | Records | NodeCertificate
FromNode = NodeHello | CertificateRequest | NodeFacts

_TYPES = control.tags_of(FromManager) | control.tags_of(FromNode)
_FROM_MANAGER: msgspec.json.Decoder[FromManager] = msgspec.json.Decoder(FromManager)
_FROM_NODE: msgspec.json.Decoder[FromNode] = msgspec.json.Decoder(FromNode)


def decode_from_manager(data: str | bytes) -> FromManager | None:
    """A message down; None for a type of a newer version; WireError if it is malformed."""
    return control.decode_tagged(_FROM_MANAGER, _TYPES, data)


def decode_from_node(data: str | bytes) -> FromNode | None:
    """A message up; None for a type of a newer version; WireError if it is malformed."""
    return control.decode_tagged(_FROM_NODE, _TYPES, data)
