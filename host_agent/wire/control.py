"""Messages of the control door: hosts and data nodes to their manager and back. FORMAT.md 11.

Facts that come up may carry fields that a reader does not know: they are of a newer version, and
are passed over. What tells a host to act is understood wholly or refused: nobody does half of a
command. A message of an unknown type is skipped.
"""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError, LimitExceeded, WireError
from host_agent.wire.limits import SEQ_LIMIT

PATH = "/v1/control"
SUBPROTOCOL = "holdfast-control.1"

#: No control characters: these texts reach databases, logs and terminals.
_PLAIN = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

Number = Annotated[int, Meta(ge=0, le=SEQ_LIMIT - 1)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
Word = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.]{0,63}\Z")]
Title = Annotated[str, Meta(pattern=_PLAIN, max_length=255)]
Path = Annotated[str, Meta(pattern=_PLAIN, min_length=1, max_length=1024)]
Sentence = Annotated[str, Meta(pattern=_PLAIN, max_length=2048)]
Door = Annotated[str, Meta(pattern=r"^[^\x00-\x20\x7f-\x9f]{1,255}\Z")]
Doors = Annotated[list[Door], Meta(max_length=limits.DOORS_MAX)]
AgentVersion = Annotated[str, Meta(pattern=r"^[0-9A-Za-z.+-]{1,40}\Z")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Megabits = Annotated[float, Meta(gt=0, le=1e6)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
Bytes = Annotated[int, Meta(ge=0, le=limits.DISK_BYTES_MAX)]
Integer = Annotated[int, Meta(ge=-SEQ_LIMIT, le=SEQ_LIMIT - 1)]
#: JSON's null where a part is not decoded here: bytes(part) is compared with it.
NULL = b"null"
NOTHING = msgspec.Raw(NULL)
Flat = Sentence | Integer | float | bool | None
Details = Annotated[dict[Word, Flat], Meta(max_length=limits.CONTROL_DETAILS_MAX)]


class Fact(msgspec.Struct, frozen=True, tag_field="type"):
    """A message up. Fields of a newer version are passed over."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A message down. A reader that does not know a field of it refuses it."""


# ------------------------------------------------------------------------ what a host is told


class PathSource(Order, frozen=True, tag_field="kind", tag="path"):
    """A disk that a local path names: a block device or an image."""

    path: Path


class QmpSource(Order, frozen=True, tag_field="kind", tag="qmp"):
    """A disk of a running machine, mirrored: QEMU's control socket and the block node."""

    socket: Path
    node: Title


Source = PathSource | QmpSource


class AssignedDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk to protect."""

    disk: Name
    name: Title
    machine: Title
    source: Source


class AssignedGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A protection group's part on this host. Limits are Mbit/s, None for no limit."""

    vpg: Name
    name: Title
    state: Literal["protecting", "paused"]
    rpo_seconds: Seconds
    replication_mbit_per_s: Megabits | None
    sync_mbit_per_s: Megabits | None
    ring_mib: Annotated[int, Meta(ge=1, le=65_536)]
    disks: Annotated[list[AssignedDisk], Meta(max_length=limits.STREAM_DISKS_MAX)]


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a host needs to protect its groups alone. `version` only grows."""

    version: Number
    tenant: Name
    host: Name
    doors: Doors
    server_name: Door
    groups: Annotated[list[AssignedGroup], Meta(max_length=limits.HOST_GROUPS_MAX)]


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Put a marker into the group's stream. `id` names the checkpoint.

    `is_awaited`: somebody waits until the journal has it, so it is stored without waiting for
    company, and a heartbeat says so at once.
    """

    vpg: Name
    id: Hex32
    tag: Title | None = None
    is_awaited: bool = False


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stop replicating a group."""

    vpg: Name


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Go on replicating a group."""

    vpg: Name


class ForceSync(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Compare a group's disks, or one of them, with the journal; `full`: send all of them."""

    vpg: Name
    disk: Name | None = None
    full: bool = False


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The group's bandwidth from now on, Mbit/s; None for no limit."""

    vpg: Name
    replication_mbit_per_s: Megabits | None
    sync_mbit_per_s: Megabits | None


class Restore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bring back the moment that the ticket names, into a folder of this host."""

    operation: Name
    ticket: Annotated[str, Meta(pattern=_PLAIN, min_length=1, max_length=32_768)]
    doors: Doors
    directory: Path


class Discover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Look for machines and disks now and send the inventory, changed or not."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve one more tenant. Over the connection of the host's owner alone.

    The host joins as that tenant's, by a key of its own, with the join token `token`, by the API at
    which its owner joined; `doors` are control doors.
    """

    tenant: Name
    token: Annotated[str, Meta(pattern=_PLAIN, min_length=1, max_length=512)]
    doors: Doors


class Withdraw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Serve a tenant no longer, and forget its keys. Over the owner's connection alone."""

    tenant: Name


Body = Checkpoint | Pause | Resume | ForceSync | Limit | Restore | Discover | Place | Withdraw
CommandKind = Literal[
    "checkpoint",
    "pause",
    "resume",
    "force_sync",
    "limit",
    "restore",
    "discover",
    "place",
    "withdraw",
]
BODIES: dict[str, type[Body]] = {
    "checkpoint": Checkpoint,
    "pause": Pause,
    "resume": Resume,
    "force_sync": ForceSync,
    "limit": Limit,
    "restore": Restore,
    "discover": Discover,
    "place": Place,
    "withdraw": Withdraw,
}


class Welcome(Order, frozen=True, tag="welcome"):
    """The manager's answer to HELLO, and again whenever another process became the manager.

    `inventory` is the digest of the inventory that the manager has: a host that has another one
    sends it.
    """

    epoch: Number
    heartbeat_seconds: Seconds
    time_ns: Number
    inventory: Hex64 | None = None


class Command(Order, frozen=True, tag="command"):
    """Something to do. (epoch, number) only grow; `body` is a structure of BODIES."""

    epoch: Number
    number: Number
    kind: Word
    body: msgspec.Raw


class AssignmentPush(Order, frozen=True, tag="assignment"):
    """A new assignment; its (epoch, number) are of the same row as the commands'."""

    epoch: Number
    number: Number
    assignment: Assignment


class Taken(Order, frozen=True, tag="taken"):
    """The answer to (epoch, number) is in the manager's database: the host need not repeat it."""

    epoch: Number
    number: Number


class Failure(msgspec.Struct, frozen=True):
    """Why something was not done."""

    code: Word
    message: Sentence
    hint: Sentence = ""
    retryable: bool = False


class DataKey(Order, frozen=True, tag="data_key"):
    """The answer to a data key request, as the key service gave it, or why there is none."""

    request: Number
    answer: msgspec.Raw = NOTHING
    error: Failure | None = None


# ------------------------------------------------------------------------ what comes up


class Hello(Fact, frozen=True, tag="hello"):
    """First on each connection: the highest (epoch, number) and the assignment that I hold."""

    agent_version: AgentVersion
    epoch: Number
    number: Number
    assignment: Number
    time_ns: Number


class DiskFacts(msgspec.Struct, frozen=True):
    """A disk as the tap serves it: where machines reach it, in which state."""

    disk: Name
    uri: Path | None
    state: Word


class GroupFacts(msgspec.Struct, frozen=True):
    """How a group's replication stands. Positions are of `generation`; rates bytes a second."""

    vpg: Name
    phase: Word
    sync: Word
    generation: Hex32 | None
    received_seq: Number
    stored_seq: Number
    stored_source_time_ns: Number | None
    backlog_bytes: Number
    write_bytes_per_second: Number
    gap_reason: Word | None = None
    disks: Annotated[list[DiskFacts], Meta(max_length=limits.STREAM_DISKS_MAX)] = []


class Heartbeat(Fact, frozen=True, tag="heartbeat"):
    """Every `heartbeat_seconds`, and when there is news that somebody waits for.

    Also the facts from which the recovery point is computed.
    """

    time_ns: Number
    tap: Literal["up", "down"]
    groups: Annotated[list[GroupFacts], Meta(max_length=limits.HOST_GROUPS_MAX)]


class FoundDisk(msgspec.Struct, frozen=True):
    """A disk of a machine as the host sees it."""

    name: Title
    source: Source
    bytes: Bytes


class FoundMachine(msgspec.Struct, frozen=True):
    """A machine as the host sees it."""

    name: Title
    disks: Annotated[list[FoundDisk], Meta(max_length=limits.STREAM_DISKS_MAX)]
    uuid: Title | None = None


class Inventory(Fact, frozen=True, tag="inventory"):
    """All machines of the host, when they changed. `digest` is the sender's, of the machines."""

    digest: Hex64
    machines: Annotated[list[FoundMachine], Meta(max_length=limits.HOST_MACHINES_MAX)]


class Answer(Fact, frozen=True, tag="answer"):
    """What became of a command or an assignment."""

    epoch: Number
    number: Number
    outcome: Literal["done", "failed"]
    result: Details | None = None
    error: Failure | None = None


class Progress(Fact, frozen=True, tag="progress"):
    """How far a long command is; its answer follows at the end."""

    epoch: Number
    number: Number
    share: Annotated[float, Meta(ge=0, le=1)]
    step: Title = ""


#: The event of a host on which a placed tenant's process cannot start. Its subject is the tenant;
#: its data are `code`, `message` and `hint`.
PLACEMENT_FAILED = "placement_failed"


class Event(Fact, frozen=True, tag="event"):
    """Something that happened on the host."""

    kind: Word
    subject: Title
    time_ns: Number
    data: Details = {}


class DataKeyRequest(Fact, frozen=True, tag="data_key_request"):
    """A stream needs its data key. What is `asked` is signed and for the key service alone."""

    request: Number
    asked: msgspec.Raw


FromManager = Welcome | Command | AssignmentPush | Taken | DataKey
FromHost = Hello | Heartbeat | Inventory | Answer | Progress | Event | DataKeyRequest

_ENCODER = msgspec.json.Encoder()
_FROM_MANAGER: msgspec.json.Decoder[FromManager] = msgspec.json.Decoder(FromManager)
_FROM_HOST: msgspec.json.Decoder[FromHost] = msgspec.json.Decoder(FromHost)
_BODY_DECODERS = {kind: msgspec.json.Decoder(body) for kind, body in BODIES.items()}


class UnknownCommand(HoldfastError):
    """A command of a kind that this host does not know."""

    code = "unknown_command"


def encode(message: Fact | Order) -> str:
    """One text message; LimitExceeded if it would be too large."""
    data = _ENCODER.encode(message)
    _check_length(len(data))
    return data.decode()


def command(epoch: int, number: int, body: Body) -> Command:
    """A command that asks for this."""
    (kind,) = (kind for kind, type_ in BODIES.items() if isinstance(body, type_))
    return Command(epoch, number, kind, msgspec.Raw(_ENCODER.encode(body)))


def body_of(message: Command) -> Body:
    """What a command asks for; UnknownCommand, or WireError if it is not understood wholly."""
    decoder = _BODY_DECODERS.get(message.kind)
    if decoder is None:
        raise UnknownCommand(
            f"This host does not know the command {message.kind}.",
            hint="Update the host's agent.",
        )
    return _decode(decoder, bytes(message.body))


def decode_from_manager(data: str | bytes) -> FromManager | None:
    """A message down; None for a type of a newer version; WireError if it is malformed."""
    return decode_tagged(_FROM_MANAGER, _TYPES, data)


def decode_from_host(data: str | bytes) -> FromHost | None:
    """A message up; None for a type of a newer version; WireError if it is malformed."""
    return decode_tagged(_FROM_HOST, _TYPES, data)


def plain(text: str, length_max: int = 2048) -> str:
    """A text as messages may carry it: on one line, without control characters, cut."""
    return _CONTROL.sub(" ", text)[:length_max].rstrip()


def failure_of(error: HoldfastError) -> Failure:
    """An error as an answer states it."""
    return Failure(error.code, plain(error.message), plain(error.hint), error.retryable)


M = TypeVar("M")


class _Tag(msgspec.Struct):
    type: Word | UnsetType = UNSET


_TAG: msgspec.json.Decoder[_Tag] = msgspec.json.Decoder(_Tag)


def tags_of(messages: UnionType) -> frozenset[str]:
    """The types of a union's messages."""
    return frozenset(str(kind.__struct_config__.tag) for kind in get_args(messages))


_TYPES = tags_of(FromManager) | tags_of(FromHost)


def _check_length(length: int) -> None:
    if length > limits.CONTROL_MESSAGE_BYTES_MAX:
        raise LimitExceeded(f"A control message of {length} bytes is larger than allowed.")


def _decode(decoder: msgspec.json.Decoder[M], data: str | bytes) -> M:
    _check_length(len(data))
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(plain(f"A control message is malformed: {error}.", 300)) from None


def decode_tagged(
    decoder: msgspec.json.Decoder[M], known: frozenset[str], data: str | bytes
) -> M | None:
    """A message; None for a type that is not `known`; WireError if it is malformed."""
    try:
        return _decode(decoder, data)
    except LimitExceeded:
        raise
    except WireError:
        tag = _decode(_TAG, data).type
        if tag is UNSET or tag in known:
            raise
        return None
