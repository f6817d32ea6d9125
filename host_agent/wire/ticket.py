"""Restore tickets: who may bring back which moment, until when, and the key that opens it.

A ticket is signed by the tenant's own authority, which is what the tenant's restore process
believes. The group's key in it is sealed to those processes. FORMAT.md 12.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Meta

from host_agent.wire import envelope, limits
from host_agent.wire.errors import BadKeyFile, HoldfastError, WireError
from host_agent.wire.keys import GroupKey
from host_agent.wire.signing import PrivateKey, is_signed_by, sign

VERSION = 1
#: What an envelope with a group's key is bound to, before tenant, group and the ticket's id.
KEY_CONTEXT = "group key for ticket"
_SIGNED = b"holdfast restore ticket v1\0"
_RECEIPT_INFO = b"holdfast restore receipt v1"
_NOT_BASE64 = "The ticket is not in its form."

_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Seconds = Annotated[int, Meta(ge=0, le=1 << 40)]
_Selector = Annotated[str, Meta(min_length=1, max_length=255)]
_Sealed = Annotated[str, Meta(max_length=2048)]


class BadTicket(HoldfastError):
    """A ticket that does not let in whoever shows it."""

    code = "bad_ticket"


class DoorKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The group's key for one data node. `key`: SHA-256 of that node's public key."""

    key: _Hex64
    sealed: _Sealed


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A right to read one moment of a group's streams. Times are seconds since 1970.

    `streams`: the hosts whose streams they are; `host`: who may come with it. It is begun before
    `begin_by`; what was begun goes on, after breaks too, until `end_by`.
    """

    version: int
    id: _Hex32
    tenant: _Name
    vpg: _Name
    streams: Annotated[list[_Name], Meta(min_length=1, max_length=limits.TICKET_STREAMS_MAX)]
    at: _Selector
    host: _Name
    begin_by: _Seconds
    end_by: _Seconds
    keys: Annotated[list[DoorKey], Meta(min_length=1, max_length=limits.DOORS_MAX)]


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That a ticket was begun for a stream, and which moment it meant there."""

    stream: _Name
    generation: _Hex32
    seq: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    seal: _Hex64

    @property
    def selector(self) -> str:
        """The same moment, exactly."""
        return f"seq:{self.generation}/{self.seq}"


def issue(ticket: Ticket, authority: PrivateKey) -> str:
    """The ticket as text, signed by the tenant's authority."""
    body = msgspec.json.encode(ticket)
    return f"{_text(body)}.{_text(sign(authority, _SIGNED + body))}"


def read_unbelieved(text: str) -> Ticket:
    """What a ticket says, for whoever carries it: its signature is not looked at; WireError."""
    return _decode(_parts(text)[0])


def check(text: str, authority: object) -> Ticket:
    """The ticket, if the holder of this public key signed it; BadTicket, WireError."""
    body, signature = _parts(text)
    if not is_signed_by(authority, signature, _SIGNED + body):
        raise BadTicket("The ticket is not signed by this tenant's authority.")
    return _decode(body)


def seal_group_key(group_key: GroupKey, ticket_id: str, recipient: bytes) -> DoorKey:
    """The group's key for the process that has this public key; WireError."""
    context = (KEY_CONTEXT, group_key.tenant, group_key.group, ticket_id)
    sealed = envelope.seal_to(recipient, group_key.dump(), *context)
    return DoorKey(hashlib.sha256(recipient).hexdigest(), base64.b64encode(sealed).decode())


def open_group_key(ticket: Ticket, own: list[ec.EllipticCurvePrivateKey]) -> GroupKey:
    """The group's key by one of a process's own keys; BadTicket, UnsealFailed, WireError."""
    sealed = {door.key: door.sealed for door in ticket.keys}
    for key in own:
        found = sealed.get(hashlib.sha256(envelope.public_of(key)).hexdigest())
        if found is not None:
            return _opened(ticket, key, found)
    raise BadTicket(
        "The ticket holds no key for this data node.",
        hint="It is for others, or older than this node's certificate: ask for a new one.",
    )


def make_receipt(ticket: Ticket, stream: str, moment: tuple[str, int], key: GroupKey) -> Receipt:
    """That the ticket was begun for a stream at (generation, sequence)."""
    generation, seq = moment
    return Receipt(stream, generation, seq, _receipt_seal(ticket, stream, moment, key))


def is_receipt_of(receipt: Receipt, ticket: Ticket, key: GroupKey) -> bool:
    """Whether this ticket was begun so, by any process that could open its key."""
    moment = (receipt.generation, receipt.seq)
    expected = _receipt_seal(ticket, receipt.stream, moment, key)
    return hmac.compare_digest(expected, receipt.seal)


def _receipt_seal(ticket: Ticket, stream: str, moment: tuple[str, int], key: GroupKey) -> str:
    sealing = HKDF(SHA256(), 32, None, _RECEIPT_INFO).derive(key.key)
    text = "\0".join((ticket.id, stream, moment[0], str(moment[1])))
    return hmac.new(sealing, text.encode(), hashlib.sha256).hexdigest()


def _opened(ticket: Ticket, key: ec.EllipticCurvePrivateKey, sealed: str) -> GroupKey:
    context = (KEY_CONTEXT, ticket.tenant, ticket.vpg, ticket.id)
    opened = GroupKey.parse(envelope.open_envelope(key, _bytes(sealed, "+/"), *context))
    if (opened.tenant, opened.group) != (ticket.tenant, ticket.vpg):
        raise BadKeyFile("The ticket holds the key of another group.")
    return opened


def _decode(body: bytes) -> Ticket:
    try:
        ticket = msgspec.json.decode(body, type=Ticket)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"{_NOT_BASE64} {error}.") from None
    if ticket.version != VERSION:
        raise WireError(f"A ticket of version {ticket.version} is not known here.")
    return ticket


def _parts(text: str) -> tuple[bytes, bytes]:
    body, dot, signature = text.partition(".")
    if len(text) > limits.TICKET_BYTES_MAX or not dot:
        raise WireError(_NOT_BASE64)
    return _bytes(body, "-_"), _bytes(signature, "-_")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _bytes(text: str, letters: str) -> bytes:
    try:
        return base64.b64decode(text, letters.encode(), validate=True)
    except ValueError:
        raise WireError(_NOT_BASE64) from None
