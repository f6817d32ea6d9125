"""What crosses the key service's socket: a length (u32, little-endian), then a JSON object."""

from __future__ import annotations

import asyncio
import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from app.keys.port import KeyMissing, KeyProblem, KeyRefused, KeyServiceAway, WrappedKey
from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.keyrequest import DataKeyRequest

#: A tenant's hosts that were ever revoked are named in a request: 40 bytes each.
MESSAGE_BYTES_MAX = 1024 * 1024
_LENGTH = struct.Struct("<I")

_Name = Annotated[str, Meta(max_length=63)]
_Reason = Annotated[str, Meta(max_length=2000)]
_Chain = Annotated[str, Meta(max_length=limits.CERTIFICATE_CHAIN_BYTES_MAX)]
_Key = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """Base of the requests: verbs of the port."""


class Health(Request, frozen=True, tag="health"):
    """Answered with an empty object while the service works."""


class MakeTenantKey(Request, frozen=True, tag="make_tenant_key"):
    tenant: _Name


class NewGroupKey(Request, frozen=True, tag="new_group_key"):
    tenant: _Name
    vpg: _Name
    tenant_key_id: _Name


class IssueDataKey(Request, frozen=True, tag="issue_data_key"):
    request: DataKeyRequest
    wrapped: WrappedKey
    denied: list[_Name]


class SealGroupKey(Request, frozen=True, tag="seal_group_key"):
    wrapped: WrappedKey
    ticket: _Name
    public_key: _Key
    reason: _Reason


class SealForRestore(Request, frozen=True, tag="seal_for_restore"):
    wrapped: WrappedKey
    ticket: _Name
    chain: _Chain
    reason: _Reason


class ExportTenantKey(Request, frozen=True, tag="export_tenant_key"):
    tenant: _Name
    public_key: _Key
    reason: _Reason


AnyRequest = (
    Health
    | MakeTenantKey
    | NewGroupKey
    | IssueDataKey
    | SealGroupKey
    | SealForRestore
    | ExportTenantKey
)


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A problem as an answer."""

    code: str
    message: str
    hint: str


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either what was asked for, as JSON, or why not."""

    done: msgspec.Raw = msgspec.Raw(b"null")
    refusal: Refusal | None = None


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """One message; WireError for a large one, IncompleteReadError at the end."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MESSAGE_BYTES_MAX:
        raise WireError(f"A message of {length} bytes is larger than {MESSAGE_BYTES_MAX}.")
    return await reader.readexactly(length)


async def write_message(writer: asyncio.StreamWriter, message: object) -> None:
    """Send one message; WireError for a large one."""
    data = msgspec.json.encode(message)
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError(f"A message of {len(data)} bytes is larger than {MESSAGE_BYTES_MAX}.")
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()


def refusal_of(error: HoldfastError) -> Refusal:
    """What the other side is told."""
    return Refusal(error.code, error.message, error.hint)


def problem_of(refusal: Refusal) -> KeyProblem:
    """The error that a refusal stands for."""
    kinds = {kind.named: kind for kind in (KeyMissing, KeyServiceAway)}
    kind = kinds.get(refusal.code, KeyRefused)
    return kind(refusal.message, hint=refusal.hint)
