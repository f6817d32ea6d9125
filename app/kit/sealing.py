"""Secrets of the deployment: a fingerprint of tokens, and sealed values in the database."""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12
_SECRET_BYTES_MIN = 32


class Sealer:
    """Made from the deployment's secret, which lies in a file and never in the database."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _SECRET_BYTES_MIN:
            raise ValueError(f"The deployment's secret has at least {_SECRET_BYTES_MIN} bytes.")
        self._pepper = _derive(secret, b"holdfast token pepper v1")
        self._aead = AESGCM(_derive(secret, b"holdfast sealed column v1"))

    def __repr__(self) -> str:
        return "Sealer(...)"

    def fingerprint(self, *parts: str) -> bytes:
        """HMAC-SHA256 of a token's parts. A token is 256 random bits: no slow hash is needed."""
        return hmac.new(self._pepper, "\0".join(parts).encode(), hashlib.sha256).digest()

    def seal(self, value: bytes, *context: str) -> bytes:
        """Encrypt a value for the one place that `context` names."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, "\0".join(context).encode())

    def open(self, sealed: bytes, *context: str) -> bytes:
        """The value; ValueError if it was changed or belongs elsewhere."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, body, "\0".join(context).encode())
        except InvalidTag:
            raise ValueError("A sealed value does not open here.") from None


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(secret)
