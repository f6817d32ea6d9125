"""Sealing a short secret to somebody's public key, so that relays see nothing. FORMAT.md 10.

Receivers that make a key for one answer have X25519 keys; servers have the P-256 key that their
certificate vouches for.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from host_agent.wire.errors import UnsealFailed, WireError

#: An X25519 key is 32 bytes, an uncompressed point of P-256 65.
X25519_BYTES, P256_BYTES = 32, 65
_TAG_BYTES = 16
#: Keys and key files: nothing larger is sealed to a key.
PLAIN_BYTES_MAX = 4096
_INFO = b"holdfast envelope v1"
#: Each envelope has a key of its own, so its one nonce may be fixed.
_NONCE = bytes(12)

OpeningKey = X25519PrivateKey | ec.EllipticCurvePrivateKey


def public_of(key: OpeningKey) -> bytes:
    """The public key to which others seal."""
    if isinstance(key, X25519PrivateKey):
        return key.public_key().public_bytes_raw()
    return point_of(key.public_key())


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key of P-256 as envelopes have it; WireError for another curve."""
    if not isinstance(key.curve, ec.SECP256R1):
        raise WireError("Envelopes are sealed to X25519 and P-256 keys alone.")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def seal_to(recipient: bytes, plain: bytes, *context: str) -> bytes:
    """`plain` for the holder of a public key alone, bound to `context`; WireError for no key."""
    if len(plain) > PLAIN_BYTES_MAX:
        raise WireError(f"An envelope holds at most {PLAIN_BYTES_MAX} bytes.")
    ephemeral: OpeningKey
    if len(recipient) == P256_BYTES:
        ephemeral = ec.generate_private_key(ec.SECP256R1())
    else:
        ephemeral = X25519PrivateKey.generate()
    public = public_of(ephemeral)
    key = _key(ephemeral, recipient, public + recipient)
    return public + AESGCM(key).encrypt(_NONCE, plain, _authenticated(context))


def open_envelope(key: OpeningKey, sealed: bytes, *context: str) -> bytes:
    """What was sealed to this key for this context; UnsealFailed, WireError."""
    own = public_of(key)
    head = len(own)
    if not head + _TAG_BYTES <= len(sealed) <= head + _TAG_BYTES + PLAIN_BYTES_MAX:
        raise WireError("An envelope has another length.")
    public, body = sealed[:head], sealed[head:]
    opening = _key(key, public, public + own)
    try:
        return AESGCM(opening).decrypt(_NONCE, body, _authenticated(context))
    except InvalidTag:
        raise UnsealFailed(
            "The envelope was sealed to another key or for another purpose, or was changed.",
            hint="Ask again with a new key.",
        ) from None


def _key(own: OpeningKey, other: bytes, salt: bytes) -> bytes:
    try:
        if isinstance(own, X25519PrivateKey):
            shared = own.exchange(X25519PublicKey.from_public_bytes(other))
        else:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), other)
            shared = own.exchange(ec.ECDH(), point)
    except ValueError:
        raise WireError("This is no public key that can be sealed to.") from None
    return HKDF(SHA256(), 32, salt, _INFO).derive(shared)


def _authenticated(context: tuple[str, ...]) -> bytes:
    return "\0".join(("holdfast envelope v1", *context)).encode()
