"""Messages of a session between agent and ingest. FORMAT.md section 6. Bytes in, structures out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from host_agent.wire import limits
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.record import SEQ_LIMIT

ALPN = "holdfast/1"
VERSION = 1
MAGIC = b"HFM1"
HEAD_BYTES = 16
_HEAD = struct.Struct("<4sBBHII")


class MessageType(IntEnum):
    """From 128 up a reader skips what it does not know."""

    HELLO = 1
    WELCOME = 2
    FRAME = 3
    RECEIVED = 4
    STORED = 5
    PROBE = 6
    PROBED = 7
    THROTTLE = 8
    CLOSE = 9
    COMMIT_NOW = 10
    FETCH = 128
    FETCHED = 129


Version = Annotated[int, Meta(ge=0, le=0xFFFF)]
Position = Annotated[int, Meta(ge=0, le=SEQ_LIMIT - 1)]
Amount = Annotated[int, Meta(ge=0, le=SEQ_LIMIT - 1)]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
StateNumber = Annotated[int, Meta(ge=0, le=3)]
Text = Annotated[str, Meta(max_length=4096)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent's first message. Generations in hexadecimal, `key` the wrapped key object."""

    version: Version
    software: Text
    tenant: Text
    group: Text
    host: Text
    generation: Hex32
    predecessor: Hex32 | None
    freed: Position
    head: Position
    key: dict[str, object]
    commit_seconds: Seconds


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ingest's answer: where the chain stands and how to go on."""

    version: Version
    epoch: Position
    generation: Hex32 | None
    stored: Position
    record_hash: Hex64
    state: StateNumber
    place: Position
    window_bytes: Amount
    frame_bytes_max: Amount
    begin: Literal["resume", "new_generation"]


class Received(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Positions up to `seq` are in ingest's memory. For flow control and diagnosis only."""

    seq: Position


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Positions up to `seq` are in the object store, by a writer of `epoch`."""

    epoch: Position
    generation: Hex32
    seq: Position
    record_hash: Hex64
    place: Position


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far is the tap now, and what does it do?"""

    probe: Amount


class Probed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As the tap stated it after the probe arrived."""

    probe: Amount
    generation: Hex32
    head: Position
    state: StateNumber


class Throttle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Send no more than this, bytes a second."""

    bytes_per_second: Amount
    reason: Text


class Close(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sender ends the connection. `retry_seconds` None: not without somebody's help."""

    code: Text
    message: Text
    hint: Text = ""
    retry_seconds: Seconds | None = None


class CommitNow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Commit as soon as `seq` was received: somebody waits for it."""

    seq: Position


class Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Give back something of my own stream, sealed as it is: up to `length` bytes of it.

    `hashes`: object `part` of the hash list of `place` (0: of the newest). `segment`: that at
    `place`. `tails`: the tails of the segments from `place` on, each after its length as a u32,
    `offset` within the first. `key`: the key object of `generation`.
    """

    request: Amount
    what: Literal["hashes", "segment", "tails", "key"]
    place: Position = 0
    part: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0
    generation: Hex32 | None = None
    offset: Amount = 0
    length: Annotated[int, Meta(ge=1, le=limits.FETCH_BYTES_MAX)] = limits.FETCH_BYTES_MAX


class FetchStatus(IntEnum):
    """What became of a FETCH."""

    DONE = 0
    MISSING = 1
    FAILED = 2


@dataclass(frozen=True)
class Fetched:
    """The answer. `place` that was meant, `total` bytes of the whole object (tails: 0)."""

    request: int
    status: FetchStatus
    place: int
    total: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The body."""
        return _FETCHED.pack(self.request, self.place, self.total, self.status) + self.data

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> Fetched:
        """From a body; WireError."""
        if len(body) < _FETCHED.size:
            raise WireError("An answer to FETCH is cut off.")
        request, place, total, status = _FETCHED.unpack_from(body)
        if status > FetchStatus.FAILED:
            raise WireError(f"An answer to FETCH has the unknown status {status}.")
        return cls(request, FetchStatus(status), place, total, bytes(body[_FETCHED.size :]))


_FETCHED = struct.Struct("<QQQB7x")

Message = (
    Hello
    | Welcome
    | Received
    | Stored
    | Probe
    | Probed
    | Throttle
    | Close
    | CommitNow
    | Fetch
    | Fetched
)
_Json = Hello | Welcome | Received | Stored | Probe | Probed | Throttle | Close | CommitNow | Fetch

_TYPES: dict[int, type[_Json]] = {
    MessageType.HELLO: Hello,
    MessageType.WELCOME: Welcome,
    MessageType.RECEIVED: Received,
    MessageType.STORED: Stored,
    MessageType.PROBE: Probe,
    MessageType.PROBED: Probed,
    MessageType.THROTTLE: Throttle,
    MessageType.CLOSE: Close,
    MessageType.COMMIT_NOW: CommitNow,
    MessageType.FETCH: Fetch,
}
_LENGTHS_MAX: dict[int, int] = {
    MessageType.FRAME: limits.MESSAGE_BYTES_MAX,
    MessageType.FETCHED: limits.FETCH_BYTES_MAX + _FETCHED.size,
}
_NUMBERS = {kind: number for number, kind in _TYPES.items()}
_ENCODER = msgspec.json.Encoder()
_DECODERS = {number: msgspec.json.Decoder(kind) for number, kind in _TYPES.items()}


def pack_head(number: int, length: int) -> bytes:
    """The 16 bytes before a body of `length` bytes."""
    head = _HEAD.pack(MAGIC, number, 0, 0, length, 0)[:12]
    return head + crc32c(head).to_bytes(4, "little")


def pack_frame_head(length: int) -> bytes:
    """The 16 bytes before a frame of `length` bytes (clear header and both parts)."""
    return pack_head(MessageType.FRAME, length)


def pack(message: Message) -> bytes:
    """A whole message."""
    if isinstance(message, Fetched):
        body = message.pack()
        return pack_head(MessageType.FETCHED, len(body)) + body
    body = _ENCODER.encode(message)
    if len(body) > limits.MESSAGE_JSON_BYTES_MAX:
        raise LimitExceeded(f"A message of {len(body)} bytes is larger than allowed.")
    return pack_head(_NUMBERS[type(message)], len(body)) + body


def parse_head(head: bytes | memoryview) -> tuple[int, int]:
    """(type, body length) of a message; checked before anything is allocated for the body."""
    if len(head) != HEAD_BYTES:
        raise WireError("A message's head is cut off.")
    magic, number, flags, reserved, length, crc = _HEAD.unpack(head)
    if magic != MAGIC:
        raise WireError("The peer does not speak Holdfast's protocol.")
    if crc32c(bytes(head[:12])) != crc:
        raise ChecksumMismatch("A message's head does not match its checksum.")
    if flags or reserved:
        raise WireError("A message's head uses fields of a newer version.")
    if number not in _TYPES and number != MessageType.FRAME and number < 128:
        raise WireError(f"Message type {number} is unknown.")
    limit = _LENGTHS_MAX.get(number, limits.MESSAGE_JSON_BYTES_MAX)
    if length > limit:
        raise LimitExceeded(f"A message of {length} bytes is larger than allowed ({limit}).")
    return number, length


def parse_body(number: int, body: bytes | memoryview) -> Message:
    """The structure of a message other than FRAME; WireError if it is not one."""
    if number == MessageType.FETCHED:
        return Fetched.unpack(body)
    decoder = _DECODERS.get(number)
    if decoder is None:
        raise WireError(f"Message type {number} has no JSON body.")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"A message of type {number} is malformed: {error}.") from None
