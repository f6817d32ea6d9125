"""How a session begins: pure decisions over HELLO, the certificate and the end of the chain."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import msgspec

from host_agent.wire import limits
from host_agent.wire.errors import BadKeyFile, BadName, WrongKey
from host_agent.wire.keys import check_key_object
from host_agent.wire.message import VERSION, Hello
from host_agent.wire.names import Identity
from host_agent.wire.segment import SegmentInfo
from workers.ingest.errors import CloseCode, SessionEnded

NO_GENERATION = bytes(16)
_HEX32 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Peer:
    """Who the client certificate says is there, and its time: seconds since 1970."""

    tenant: str
    host: str
    address: str
    valid_from: float = -math.inf
    valid_to: float = math.inf


@dataclass(frozen=True)
class Admitted:
    """A HELLO that was checked. `commit_seconds` is within this ingest's bounds."""

    identity: Identity
    generation: bytes
    predecessor: bytes | None
    key_object: bytes
    commit_seconds: float


@dataclass(frozen=True)
class Rules:
    """What this ingest allows. `hosts` None: any host of the tenant, for any group."""

    tenant: str
    hosts: Mapping[str, frozenset[str]] | None
    commit_seconds_min: float
    commit_seconds_max: float
    denied: frozenset[str] = frozenset()
    grace_seconds: float = 0.0


def authorise_peer(peer: Peer, rules: Rules) -> None:
    """Raise SessionEnded unless the certificate's holder may speak at all."""
    known = rules.hosts is None or peer.host in rules.hosts
    if peer.tenant != rules.tenant or not known or peer.host in rules.denied:
        raise _not_authorised()


def check_validity(peer: Peer, rules: Rules, now: float) -> float:
    """How many seconds ago the certificate ran out, 0 before; SessionEnded if it is not accepted.

    TLS itself leaves the certificate's time to us where there is a grace.
    """
    late = max(0.0, now - peer.valid_to)
    if now < peer.valid_from or late > rules.grace_seconds:
        raise SessionEnded(
            CloseCode.NOT_AUTHORISED,
            "The certificate is not valid at this time.",
            hint="Renew it; compare the clocks of the host and of this machine.",
        )
    return late


def may_write(peer: Peer, group: str | None, rules: Rules) -> bool:
    """Whether a session that is under way may go on. `group` None: it has not said HELLO yet."""
    try:
        authorise_peer(peer, rules)
    except SessionEnded:
        return False
    allowed = None if rules.hosts is None else rules.hosts[peer.host]
    return group is None or allowed is None or bool(allowed & {group, "*"})


def admit(hello: Hello, peer: Peer, rules: Rules) -> Admitted:
    """Check a HELLO against the certificate and the rules; SessionEnded."""
    if hello.version != VERSION:
        raise SessionEnded(
            CloseCode.PROTOCOL,
            f"The agent speaks version {hello.version}, this ingest version {VERSION}.",
            hint="Update the older of the two.",
        )
    authorise_peer(peer, rules)
    if (hello.tenant, hello.host) != (peer.tenant, peer.host):
        raise _not_authorised()
    try:
        identity = Identity(hello.tenant, hello.group, hello.host)
    except BadName as error:
        raise SessionEnded(CloseCode.PROTOCOL, error.message, hint=error.hint) from None
    if not may_write(peer, identity.group, rules):
        raise _not_authorised()
    generation = _generation(hello.generation)
    seconds = min(max(hello.commit_seconds, rules.commit_seconds_min), rules.commit_seconds_max)
    return Admitted(
        identity,
        generation,
        None if hello.predecessor is None else _generation(hello.predecessor),
        _key_object(hello, identity, generation),
        seconds,
    )


def _not_authorised() -> SessionEnded:
    # The same words whatever is wrong: they tell a stranger nothing about tenants and groups.
    return SessionEnded(
        CloseCode.NOT_AUTHORISED,
        "This certificate does not allow this stream.",
        hint="Compare tenant, host and group of the agent with its certificate and with [hosts].",
    )


def _generation(text: str) -> bytes:
    if not _HEX32.fullmatch(text) or int(text, 16) == 0:
        raise SessionEnded(CloseCode.PROTOCOL, "A generation has 32 hexadecimal digits.")
    return bytes.fromhex(text)


def _key_object(hello: Hello, identity: Identity, generation: bytes) -> bytes:
    data = msgspec.json.encode(hello.key)
    if len(data) > limits.KEY_OBJECT_BYTES_MAX:
        raise SessionEnded(CloseCode.LIMIT, "The wrapped data key is too large for one.")
    try:
        check_key_object(data, identity, generation)
    except (BadKeyFile, WrongKey) as error:
        raise SessionEnded(CloseCode.PROTOCOL, error.message, hint=error.hint) from None
    return data


class StoredKey(Enum):
    """What the store has as the generation's wrapped data key."""

    MISSING = "missing"
    SAME = "same"
    OTHER = "other"


def compare_key(stored: bytes | None, offered: bytes) -> StoredKey:
    """Whether the stored key object is the offered one; how the JSON is written does not matter."""
    if stored is None:
        return StoredKey.MISSING
    try:
        same = bool(msgspec.json.decode(stored) == msgspec.json.decode(offered))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        same = False
    return StoredKey.SAME if same else StoredKey.OTHER


Begin = Literal["resume", "new_generation"]


def decide_begin(hello: Admitted, end: SegmentInfo | None, key: StoredKey) -> Begin:
    """How the stream goes on from the chain's end (None: an empty chain); SessionEnded.

    The key object is made just before a generation's first segment. So a generation whose key is
    there, without being the chain's newest, has ended, unless the writer died between the two: then
    the newest generation still is its predecessor.
    """
    newest = NO_GENERATION if end is None else end.generation
    if key is StoredKey.OTHER:
        raise SessionEnded(
            CloseCode.GENERATION_ENDED,
            "The journal holds another data key for this generation; frames could not be opened.",
            hint="Begin a new generation.",
        )
    if newest == hello.generation:
        if key is StoredKey.MISSING:
            raise SessionEnded(
                CloseCode.CHAIN_BROKEN,
                "The journal has lost the data key of the stream's newest generation.",
                hint="Bring the object back from a copy of the store, or begin a new generation.",
            )
        return "resume"
    never_began = newest in (NO_GENERATION, hello.predecessor)
    if key is StoredKey.MISSING or never_began:
        return "new_generation"
    raise SessionEnded(
        CloseCode.GENERATION_ENDED,
        "The journal went on with another generation after this one.",
        hint="The host's state may be an old copy. Begin a new generation.",
    )
