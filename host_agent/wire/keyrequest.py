"""How a host asks for a stream's data key, and what it gets. FORMAT.md section 10.

The key service alone opens the group's key. Everybody between it and the host relays both
messages without being able to read the key or to ask in a host's name.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import Meta

from host_agent.wire import envelope, limits
from host_agent.wire.errors import UnsealFailed, WireError, WrongKey
from host_agent.wire.keys import KEY_BYTES, check_key_object
from host_agent.wire.names import Identity
from host_agent.wire.signing import PrivateKey, is_signed_by, sign

VERSION = 1
_SIGNED = "holdfast data key request v1"
_SEALED = "data key"

_Name = Annotated[str, Meta(max_length=63)]
_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Base64 = Annotated[str, Meta(max_length=1024)]
_KeyObject = Annotated[str, Meta(max_length=limits.KEY_OBJECT_BYTES_MAX)]
#: A leaf and its intermediate: about 2 KiB.
_Chain = Annotated[str, Meta(max_length=limits.CERTIFICATE_CHAIN_BYTES_MAX)]


class DataKeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host wants the data key of a generation of one of its streams.

    With `key_object` (what the journal holds) that generation's key is opened, without one a new
    key is made. `chain` is PEM, the host's certificate first, then its tenant's intermediate.
    """

    version: int
    tenant: _Name
    vpg: _Name
    host: _Name
    generation: _Hex32
    public_key: _Base64
    key_object: _KeyObject | None
    chain: _Chain
    signature: _Base64

    @property
    def identity(self) -> Identity:
        """The stream; BadName."""
        return Identity(self.tenant, self.vpg, self.host)

    @property
    def signed_bytes(self) -> bytes:
        """What the host's key signs."""
        given = "" if self.key_object is None else _digest(self.key_object)
        stream = (self.tenant, self.vpg, self.host, self.generation)
        return "\0".join((_SIGNED, *stream, self.public_key, given, _digest(self.chain))).encode()


class DataKeyAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key object for the journal, and the data key sealed to the request's public key."""

    version: int
    tenant: _Name
    vpg: _Name
    host: _Name
    generation: _Hex32
    key_object: _KeyObject
    sealed: _Base64


@dataclass(frozen=True)
class HostIdentity:
    """What a host signs with: its private key, and its certificate with its intermediate's."""

    key: PrivateKey
    chain: str


@dataclass(frozen=True)
class Asked:
    """A request on its way: only who made it can open the answer."""

    request: DataKeyRequest
    private: X25519PrivateKey

    def open(self, answer: DataKeyAnswer) -> tuple[bytes, bytes]:
        """(data key, key object for the journal); WireError, WrongKey, UnsealFailed."""
        asked = self.request
        wanted = (asked.tenant, asked.vpg, asked.host, asked.generation)
        if (answer.tenant, answer.vpg, answer.host, answer.generation) != wanted:
            raise WrongKey("The answer is for another stream than the one that was asked for.")
        if asked.key_object not in (None, answer.key_object):
            raise WrongKey("The answer is for another key object than the one that was sent.")
        made = answer.key_object.encode()
        check_key_object(made, asked.identity, bytes.fromhex(asked.generation))
        sealed = _bytes_of(answer.sealed)
        key = envelope.open_envelope(self.private, sealed, *_context(asked, answer.key_object))
        if len(key) != KEY_BYTES:
            raise UnsealFailed("What was sealed is no data key.")
        return key, made


def ask(
    host: HostIdentity, identity: Identity, generation: bytes, key_object: bytes | None = None
) -> Asked:
    """A signed request with a fresh key of its own; WireError for what is no key object."""
    private = X25519PrivateKey.generate()
    unsigned = DataKeyRequest(
        VERSION,
        identity.tenant,
        identity.group,
        identity.host,
        generation.hex(),
        _text_of(private.public_key().public_bytes_raw()),
        None if key_object is None else _plain(key_object),
        host.chain,
        "",
    )
    signature = _text_of(sign(host.key, unsigned.signed_bytes))
    return Asked(msgspec.structs.replace(unsigned, signature=signature), private)


def certificates_of(request: DataKeyRequest) -> tuple[x509.Certificate, x509.Certificate]:
    """(leaf, intermediate) that came with the request, neither believed yet; WireError."""
    try:
        leaf, intermediate = x509.load_pem_x509_certificates(request.chain.encode())
    except ValueError:
        raise WireError(
            "The request's chain is not two certificates in PEM.",
            hint="Send the host's certificate and its tenant's intermediate.",
        ) from None
    return leaf, intermediate


def is_signed(request: DataKeyRequest, leaf: x509.Certificate) -> bool:
    """Whether the holder of the leaf's key made this very request."""
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    return is_signed_by(key, _bytes_of(request.signature), request.signed_bytes)


def answer_to(request: DataKeyRequest, data_key: bytes, key_object: bytes) -> DataKeyAnswer:
    """The answer that the host alone can open; WireError for a bad public key."""
    made = key_object.decode()
    sealed = envelope.seal_to(_bytes_of(request.public_key), data_key, *_context(request, made))
    stream = (request.tenant, request.vpg, request.host, request.generation)
    return DataKeyAnswer(VERSION, *stream, made, _text_of(sealed))


_Message = TypeVar("_Message", DataKeyRequest, DataKeyAnswer)


def to_builtins(message: DataKeyRequest | DataKeyAnswer) -> dict[str, object]:
    """As it stands in a message of the control door."""
    plain: dict[str, object] = msgspec.to_builtins(message)
    return plain


def parse(given: object, kind: type[_Message]) -> _Message:
    """The request or answer that decoded JSON holds; WireError, BadName."""
    try:
        found = msgspec.convert(given, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise WireError(f"This is no {kind.__name__}: {error}.") from None
    if found.version != VERSION:
        raise WireError(f"A {kind.__name__} of version {found.version} is not known here.")
    Identity(found.tenant, found.vpg, found.host)
    return found


def _context(request: DataKeyRequest, key_object: str) -> tuple[str, ...]:
    stream = (request.tenant, request.vpg, request.host, request.generation)
    return (_SEALED, *stream, request.public_key, _digest(key_object))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(key_object: bytes) -> str:
    try:
        return key_object.decode()
    except UnicodeDecodeError:
        raise WireError("A key object is UTF-8.") from None


def _text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise WireError("A field of a key request is not Base64.") from None
