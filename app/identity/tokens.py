"""Bearer tokens: `hf_<tenant>_<id>_<secret>` of an API key, `hfs_…` of a person's session, `hfi_…`
of an invitation, `hfe_…` of an entry of the provider's staff into a tenant, and
`hfp_<id>_<secret>` for the staff itself.

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

KEY, SESSION, INVITATION, ENTRY, PROVIDER = "hf", "hfs", "hfi", "hfe", "hfp"
_OF_TENANT = (KEY, SESSION, INVITATION, ENTRY)
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Token:
    """A token's parts; `tenant_id` is None for the provider's."""

    tenant_id: UUID | None
    id: UUID
    secret: str = field(repr=False)
    kind: str = KEY

    @property
    def text(self) -> str:
        """The token as its owner presents it."""
        if self.tenant_id is None:
            return f"{PROVIDER}_{encode(self.id)}_{self.secret}"
        return f"{self.kind}_{encode(self.tenant_id)}_{encode(self.id)}_{self.secret}"

    def fingerprint(self, sealer: Sealer) -> bytes:
        """What is kept of it."""
        tenant = encode(self.tenant_id) if self.tenant_id else ""
        return sealer.fingerprint("token", self.kind, tenant, encode(self.id), self.secret)

    def matches(self, sealer: Sealer, fingerprint: bytes) -> bool:
        """Whether this is the token of which `fingerprint` was kept, in constant time."""
        return hmac.compare_digest(self.fingerprint(sealer), fingerprint)


def make_token(tenant_id: UUID | None, token_id: UUID, kind: str = KEY) -> Token:
    """A new token with a fresh secret."""
    kind = kind if tenant_id else PROVIDER
    return Token(tenant_id, token_id, secrets.token_hex(_SECRET_BYTES), kind)


def parse_token(text: str) -> Token | None:
    """The parts of a token of any kind, or None for what is none."""
    prefix, *parts = text.split("_")
    try:
        if prefix in _OF_TENANT and len(parts) == 3:
            token = Token(decode(parts[0]), decode(parts[1]), parts[2], prefix)
        elif prefix == PROVIDER and len(parts) == 2:
            token = Token(None, decode(parts[0]), parts[1], PROVIDER)
        else:
            return None
    except BadId:
        return None
    is_secret = len(token.secret) == 2 * _SECRET_BYTES and token.secret.isascii()
    return token if is_secret else None
