"""Sealing a short secret to somebody's X25519 key, so that relays see nothing. FORMAT.md 10."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from host_agent.wire.errors import UnsealFailed, WireError

PUBLIC_BYTES = 32
_TAG_BYTES = 16
#: Keys and key files: nothing larger is sealed to a key.
PLAIN_BYTES_MAX = 4096
_INFO = b"holdfast envelope v1"
#: Each envelope has a key of its own, so its one nonce may be fixed.
_NONCE = bytes(12)


def seal_to(recipient: bytes, plain: bytes, *context: str) -> bytes:
    """`plain` for the holder of a public key alone, bound to `context`; WireError for no key."""
    if len(plain) > PLAIN_BYTES_MAX:
        raise WireError(f"An envelope holds at most {PLAIN_BYTES_MAX} bytes.")
    return _seal(X25519PrivateKey.generate(), recipient, plain, context)


def _seal(
    ephemeral: X25519PrivateKey, recipient: bytes, plain: bytes, context: tuple[str, ...]
) -> bytes:
    public = ephemeral.public_key().public_bytes_raw()
    key = _key(ephemeral, recipient, public + recipient)
    return public + AESGCM(key).encrypt(_NONCE, plain, _authenticated(context))


def open_envelope(key: X25519PrivateKey, sealed: bytes, *context: str) -> bytes:
    """What was sealed to this key for this context; UnsealFailed, WireError."""
    if not PUBLIC_BYTES + _TAG_BYTES <= len(sealed) <= PUBLIC_BYTES + _TAG_BYTES + PLAIN_BYTES_MAX:
        raise WireError("An envelope has another length.")
    public, body = sealed[:PUBLIC_BYTES], sealed[PUBLIC_BYTES:]
    opening = _key(key, public, public + key.public_key().public_bytes_raw())
    try:
        return AESGCM(opening).decrypt(_NONCE, body, _authenticated(context))
    except InvalidTag:
        raise UnsealFailed(
            "The envelope was sealed to another key or for another purpose, or was changed.",
            hint="Ask again with a new key.",
        ) from None


def _key(own: X25519PrivateKey, other: bytes, salt: bytes) -> bytes:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise WireError("This is no X25519 public key.") from None
    return HKDF(SHA256(), 32, salt, _INFO).derive(shared)


def _authenticated(context: tuple[str, ...]) -> bytes:
    return "\0".join(("holdfast envelope v1", *context)).encode()
