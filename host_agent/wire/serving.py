"""What a data node has to know of a tenant to serve it alone. FORMAT.md 11.

Fields that a reader does not know are passed over: a node that is older than its manager must still
learn of a host that was shut out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from host_agent.wire import limits
from host_agent.wire.errors import WireError

#: What keeps a tenant's store credential from opening another tenant's objects, best first.
Wall = Literal["session_policy", "static", "folder", "shared"]
Count = Annotated[int, Meta(ge=1, le=1 << 40)]
Version = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
GroupName = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,62}|\*)\Z")]
Pem = Annotated[str, Meta(min_length=1, max_length=16_384)]
Text = Annotated[str, Meta(max_length=4096)]


class StoreAccess(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the tenant's journal lies and how its processes come in. Never shown."""

    url: Annotated[str, Meta(min_length=1, max_length=1024)]
    wall: Wall
    access_key_id: Text | None = None
    secret_access_key: Text | None = None
    session_token: Text | None = None

    def __repr__(self) -> str:
        return f"StoreAccess(wall={self.wall!r}, …)"


class HostRight(msgspec.Struct, frozen=True):
    """A host that may come in, and the groups that it may write; `*`: all of the tenant."""

    host: Name
    groups: Annotated[list[GroupName], Meta(max_length=limits.SERVED_GROUPS_MAX)]


class Quotas(msgspec.Struct, frozen=True):
    """What one process of the tenant takes on at most. `bytes_per_second`: of all its streams
    together; None: as much as comes.
    """

    connections_max: Count = 256
    memory_bytes_max: Count = 256 * limits.MIB
    bytes_per_second: Count | None = None


class ServingRecord(msgspec.Struct, frozen=True):
    """A tenant at a data node. `version` only grows. `denied` hosts are out whatever else says."""

    tenant: Name
    version: Version
    intermediate: Pem
    store: StoreAccess
    hosts: Annotated[list[HostRight], Meta(max_length=limits.SERVED_HOSTS_MAX)]
    denied: Annotated[list[Name], Meta(max_length=limits.SERVED_HOSTS_MAX)] = []
    quotas: Quotas = Quotas()


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(ServingRecord)


def encode_record(record: ServingRecord) -> bytes:
    """The record as it is sent and kept."""
    return _ENCODER.encode(record)


def decode_record(data: bytes | msgspec.Raw) -> ServingRecord:
    """The record; WireError if it is none."""
    try:
        return _DECODER.decode(bytes(data))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # The error's text names a field, never its value.
        raise WireError(f"A tenant's record is malformed: {error}.") from None
