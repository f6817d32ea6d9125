"""Messages between a host that restores and its tenant's restore process. FORMAT.md 12.

Requests are answered in their order. The same form serves both directions; each side refuses what
the other may not say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from host_agent.wire import limits
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.ticket import Receipt

ALPN = "holdfast-restore/1"
VERSION = 1
MAGIC = b"HFT1"
HEAD_BYTES = 16
#: Types from here on are skipped by who does not know them.
SKIPPED_FROM = 128
_HEAD = struct.Struct("<4sB3xII")
_DATA = struct.Struct("<QQII")


class Type(IntEnum):
    """Numbers of the messages."""

    OPEN = 1
    OPENED = 2
    LIST = 3
    RANGES = 4
    READ = 5
    DATA = 6
    CLOSE = 7
    OPENING = 128


Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Length = Annotated[int, Meta(ge=1, le=limits.RESTORE_READ_BYTES_MAX)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
DiskBytes = Annotated[int, Meta(ge=0, le=limits.DISK_BYTES_MAX)]
Range = tuple[DiskBytes, Annotated[int, Meta(ge=1, le=limits.DISK_BYTES_MAX)]]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the JSON bodies."""


class Open(_Body, frozen=True):
    """The client's first message. With the receipt of an earlier one the same moment is meant."""

    version: Annotated[int, Meta(ge=0, le=0xFFFF)]
    ticket: Annotated[str, Meta(max_length=limits.TICKET_BYTES_MAX)]
    stream: Name
    receipt: Receipt | None = None


class Disk(_Body, frozen=True):
    """A disk of the moment, bytes. All but `data_bytes` of it are zeroes."""

    name: Name
    size: DiskBytes
    data_bytes: DiskBytes


class Opened(_Body, frozen=True):
    """The moment is open. `time_ns`: the stream's own. `unreadable`: what the source could not
    read: (disk, offset, length), which are zeroes.
    """

    receipt: Receipt
    time_ns: Number
    checkpoint: Hex32 | None
    disks: Annotated[list[Disk], Meta(max_length=limits.STREAM_DISKS_MAX)]
    unreadable: list[tuple[Name, DiskBytes, DiskBytes]] = []


class List(_Body, frozen=True):
    """Where a disk is not all zeroes, from a byte on."""

    request: Number
    disk: Name
    offset: DiskBytes


class Ranges(_Body, frozen=True):
    """Ascending ranges (offset, length); what lies between is zeroes. `next`: ask on from there."""

    request: Number
    ranges: Annotated[list[Range], Meta(max_length=limits.RESTORE_RANGES_MAX)]
    next: DiskBytes | None


class Read(_Body, frozen=True):
    """A range of a disk, which lies in it."""

    request: Number
    disk: Name
    offset: DiskBytes
    length: Length


@dataclass(frozen=True)
class Data:
    """The answer to READ. Its checksum was taken by the server and was right when it came."""

    request: int
    offset: int
    data: bytes
    crc: int


class Close(_Body, frozen=True):
    """The sender ends the connection. `retry_seconds` None: not without somebody's help."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=2048)]
    hint: Annotated[str, Meta(max_length=2048)] = ""
    retry_seconds: Annotated[float, Meta(ge=0, le=1e9)] | None = None


class Opening(_Body, frozen=True):
    """The server still reads the journal. Every few seconds before OPENED."""

    records: Number = 0


Message = Open | Opened | List | Ranges | Read | Data | Close | Opening
_JSON: dict[int, type[Message]] = {
    Type.OPEN: Open,
    Type.OPENED: Opened,
    Type.LIST: List,
    Type.RANGES: Ranges,
    Type.READ: Read,
    Type.CLOSE: Close,
    Type.OPENING: Opening,
}
_NUMBERS = {kind: number for number, kind in _JSON.items()}
_DECODERS = {number: msgspec.json.Decoder(kind) for number, kind in _JSON.items()}


def pack(message: Message) -> bytes:
    """A whole message; LimitExceeded."""
    if isinstance(message, Data):
        head = _DATA.pack(message.request, message.offset, len(message.data), message.crc)
        return _pack_head(Type.DATA, len(head) + len(message.data)) + head + message.data
    body = msgspec.json.encode(message)
    if len(body) > limits.RESTORE_JSON_BYTES_MAX:
        raise LimitExceeded(f"A message of {len(body)} bytes is larger than allowed.")
    return _pack_head(_NUMBERS[type(message)], len(body)) + body


def _pack_head(number: int, length: int) -> bytes:
    head = _HEAD.pack(MAGIC, number, length, 0)[:12]
    return head + crc32c(head).to_bytes(4, "little")


def parse_head(head: bytes) -> tuple[int, int]:
    """(type, body length), checked before anything is allocated for the body; WireError."""
    magic, number, length, crc = _HEAD.unpack(head)
    if magic != MAGIC:
        raise WireError("The peer does not speak the protocol of restores.")
    if crc32c(head[:12]) != crc:
        raise ChecksumMismatch("A message's head does not match its checksum.")
    if number not in _JSON and number != Type.DATA and number < SKIPPED_FROM:
        raise WireError(f"Message type {number} is unknown.")
    limit = limits.RESTORE_JSON_BYTES_MAX
    if number == Type.DATA:
        limit = limits.RESTORE_READ_BYTES_MAX + _DATA.size
    if length > limit:
        raise LimitExceeded(f"A message of {length} bytes is larger than allowed ({limit}).")
    return number, length


def parse_body(number: int, body: bytes) -> Message | None:
    """The message; None for one to be skipped; WireError, ChecksumMismatch."""
    if number == Type.DATA:
        return _parse_data(body)
    decoder = _DECODERS.get(number)
    if decoder is None:
        return None
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"A message of type {number} is malformed: {error}.") from None


def _parse_data(body: bytes) -> Data:
    if len(body) < _DATA.size:
        raise WireError("An answer to READ is cut off.")
    request, offset, length, crc = _DATA.unpack_from(body)
    data = body[_DATA.size :]
    if len(data) != length:
        raise WireError("An answer to READ has another length than it says.")
    if crc32c(data) != crc:
        raise ChecksumMismatch("An answer to READ does not match its checksum.")
    return Data(request, offset, data, crc)
