"""How a host comes in: once by a join token, then by the key of its certificate.

All that may be wrong with a token or a certificate has one answer, so that nothing is learned by
trying.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from sqlalchemy import update

from app.certificates.service import load_tenant_authority
from app.database.sessions import TenantSession
from app.hosts.schemas import RenewalInput
from app.identity.principals import Principal, refused
from app.identity.privileges import Privilege
from app.identity.tokens import Token
from app.kit.ids import BadId, Kind, parse, show
from app.kit.sealing import Sealer
from app.models import Host, JoinToken, Tenant
from app.models.base import key_of
from app.models.hosts import HostState
from app.models.tenants import TenantState
from host_agent.wire.errors import BadName
from host_agent.wire.names import parse_san
from host_agent.wire.signing import is_signed_by

#: So long after its end a certificate still renews, unless its host was revoked.
GRACE = timedelta(days=7)
#: What the old key signs: this, then the certificate request's PEM.
RENEWAL_CONTEXT = b"holdfast renewal v1\0"


async def authenticate_join(
    session: TenantSession, token: Token, sealer: Sealer, now: datetime
) -> Principal:
    """Use up a join token; Problem `not_authenticated`. Undone with the transaction."""
    table = JoinToken
    used = await session.orm.execute(
        update(table)
        .where(
            table.tenant_id == session.tenant_id,
            table.id == token.id,
            table.fingerprint == token.fingerprint(sealer),
            table.used_at.is_(None),
            table.revoked_at.is_(None),
            table.expires_at > now,
        )
        .values(used_at=now)
        .returning(table.id)
    )
    if used.first() is None or not await _is_active(session):
        raise refused()
    actor = show(Kind.JOIN_TOKEN, token.id)
    return Principal(session.tenant_id, token.id, actor, frozenset({Privilege.HOST_JOIN}))


@dataclass(frozen=True)
class Claim:
    """Who a renewal says that it comes from."""

    tenant_id: UUID
    host_id: UUID
    certificate: x509.Certificate
    signature: bytes
    request: str


def read_claim(wanted: RenewalInput) -> Claim:
    """The claim of a renewal; Problem `not_authenticated` for what is none."""
    try:
        certificate = x509.load_pem_x509_certificate(wanted.certificate.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        tenant, host = parse_san(uris[0] if len(uris) == 1 else "")
        signature = base64.b64decode(wanted.signature, validate=True)
        tenant_id, host_id = parse(Kind.TENANT, tenant), parse(Kind.HOST, host)
    except (ValueError, BadName, BadId, binascii.Error, x509.ExtensionNotFound):
        raise refused() from None
    return Claim(tenant_id, host_id, certificate, signature, wanted.certificate_request)


async def authenticate_renewal(
    session: TenantSession, claim: Claim, sealer: Sealer, now: datetime
) -> Principal:
    """The host behind a renewal; Problem `not_authenticated`."""
    host = await session.orm.get(
        Host, key_of(session.tenant_id, claim.host_id), with_for_update=True
    )
    if host is None or host.state != HostState.ACTIVE or not await _is_active(session):
        raise refused()
    authority = await load_tenant_authority(session, sealer)
    try:
        claim.certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise refused() from None
    key = claim.certificate.public_key()
    is_known = key_fingerprint(key) in (host.key_fingerprint, host.previous_key_fingerprint)
    is_timely = now <= claim.certificate.not_valid_after_utc + GRACE
    signed = RENEWAL_CONTEXT + claim.request.encode()
    if not (is_known and is_timely and is_signed_by(key, claim.signature, signed)):
        raise refused()
    actor = show(Kind.HOST, host.id)
    return Principal(session.tenant_id, host.id, actor, frozenset({Privilege.HOST_RENEW}))


def key_fingerprint(key: object) -> bytes:
    """SHA-256 of a public key's DER."""
    encoding = serialization.Encoding.DER
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding, kind)).digest()  # type: ignore[attr-defined]


async def _is_active(session: TenantSession) -> bool:
    tenant = await session.orm.get(Tenant, session.tenant_id)
    return tenant is not None and tenant.state == TenantState.ACTIVE
