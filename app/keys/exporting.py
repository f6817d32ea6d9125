"""The caller's side of an export: a key for this one answer, and what the answer holds."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.keys.port import RECOVERY_CONTEXT
from app.keys.schemas import RecoveryKeyInput, RecoveryKeyOutput
from host_agent.wire.envelope import open_envelope, public_of
from host_agent.wire.keys import TenantKey


def request_export(
    tenant_name: str, reason: str, code: str | None = None
) -> tuple[RecoveryKeyInput, X25519PrivateKey]:
    """A request, and the key that opens its answer."""
    private = X25519PrivateKey.generate()
    public = base64.b64encode(public_of(private))
    wanted = RecoveryKeyInput(tenant_name=tenant_name, reason=reason, public_key=public, code=code)
    return wanted, private


def open_exported(answer: RecoveryKeyOutput, private: X25519PrivateKey) -> TenantKey:
    """The tenant's key; UnsealFailed, WireError, BadKeyFile."""
    sealed = base64.b64decode(answer.sealed)
    return TenantKey.parse(open_envelope(private, sealed, RECOVERY_CONTEXT, answer.tenant_id))
