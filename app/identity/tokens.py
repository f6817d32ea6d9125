"""Bearer tokens: `hf_<tenant>_<id>_<secret>`, or `hfp_<id>_<secret>` for the provider's staff.

A host joins with `hfj_<tenant>_<id>_<secret>_<root>`, where root is the SHA-256 of the deployment's
root certificate, so that a host believes nobody else from its first connection on.

The tenant is in the token, so that the scope is set before the first query. The secret is 256
random bits; the database keeps an HMAC of it under the deployment's pepper.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from uuid import UUID

from app.kit.ids import BadId, decode, encode
from app.kit.sealing import Sealer

_TENANT_PREFIX, _PROVIDER_PREFIX = "hf", "hfp"
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Token:
    """A token's parts; `tenant_id` is None for the provider's."""

    tenant_id: UUID | None
    id: UUID
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The token as its owner presents it."""
        if self.tenant_id is None:
            return f"{_PROVIDER_PREFIX}_{encode(self.id)}_{self.secret}"
        return f"{_TENANT_PREFIX}_{encode(self.tenant_id)}_{encode(self.id)}_{self.secret}"

    def fingerprint(self, sealer: Sealer) -> bytes:
        """What is kept of it."""
        tenant = encode(self.tenant_id) if self.tenant_id else ""
        return sealer.fingerprint("token", tenant, encode(self.id), self.secret)

    def matches(self, sealer: Sealer, fingerprint: bytes) -> bool:
        """Whether this is the token of which `fingerprint` was kept, in constant time."""
        return hmac.compare_digest(self.fingerprint(sealer), fingerprint)


def make_token(tenant_id: UUID | None, key_id: UUID) -> Token:
    """A new token with a fresh secret."""
    return Token(tenant_id, key_id, secrets.token_hex(_SECRET_BYTES))


def parse_token(text: str) -> Token | None:
    """The parts of a token, or None for what is none."""
    prefix, *parts = text.split("_")
    try:
        if prefix == _TENANT_PREFIX and len(parts) == 3:
            token = Token(decode(parts[0]), decode(parts[1]), parts[2])
        elif prefix == _PROVIDER_PREFIX and len(parts) == 2:
            token = Token(None, decode(parts[0]), parts[1])
        else:
            return None
    except BadId:
        return None
    is_secret = len(token.secret) == 2 * _SECRET_BYTES and token.secret.isascii()
    return token if is_secret else None
