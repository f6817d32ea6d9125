"""The control door: TLS 1.3 with client certificates, and who may come in.

The context trusts the deployment's root, which has signed every tenant's intermediate. That a chain
leads to the root therefore says nothing of whose it is: the leaf must be issued by the very
intermediate of the tenant that its name claims. It is decided before one byte is read.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from sqlalchemy import select

from app.database.sessions import Database
from app.dsm.assignments import NO_SITE, Place
from app.hosts.enrolment import key_fingerprint
from app.kit.ids import BadId, Kind, parse
from app.kit.settings import BadSettings
from app.models import Host, Tenant, TenantAuthority
from app.models.hosts import HostState
from app.models.tenants import TenantState
from host_agent.wire.errors import BadName, HoldfastError
from host_agent.wire.names import parse_san

PROCESS_URI = "spiffe://holdfast/dsm"


class NotAdmitted(HoldfastError):
    """Whoever came in by the control door may not."""

    code = "not_admitted"


@dataclass(frozen=True)
class Peer:
    """A host that came in. `tenant` and `host` are its names as its certificate has them."""

    place: Place
    host_id: UUID
    tenant: str
    host: str
    expires_at: datetime


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: this process's certificate with its key, and the root that it trusts."""

    certificate: Path
    root: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the doors of this process; BadSettings names the file that is wrong."""
    context = _trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    context.verify_mode = ssl.CERT_REQUIRED
    # A ticket would let a client in again without showing its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For calling another process; its name is checked by its URI, see `is_process`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _trusting(context, files)


def _trusting(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for file, load in (
        (files.certificate, context.load_cert_chain),
        (files.root, context.load_verify_locations),
    ):
        try:
            load(file)
        except (OSError, ssl.SSLError) as error:
            raise BadSettings(
                f"{file} cannot be used: {error}.",
                hint="The certificate with its key, and the deployment's root, each in PEM.",
            ) from None
    return context


def read_leaf(der: bytes | None) -> x509.Certificate:
    """The peer's certificate; NotAdmitted."""
    try:
        return x509.load_der_x509_certificate(der or b"")
    except ValueError:
        raise _refused("it shows no certificate") from None


def uri_of(leaf: x509.Certificate) -> str:
    """The one name in a certificate; NotAdmitted."""
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound):
        names = []
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise _refused("its certificate has not exactly one URI name")
    return uris[0]


def is_process(der: bytes | None, root: x509.Certificate) -> bool:
    """Whether the peer is another process of ours: named so, by the root itself."""
    try:
        leaf = read_leaf(der)
        if uri_of(leaf) != PROCESS_URI:
            return False
        leaf.verify_directly_issued_by(root)
    except (NotAdmitted, ValueError, TypeError, InvalidSignature):
        return False
    return True


async def admit_host(leaf: x509.Certificate, database: Database) -> Peer:
    """Whose host it is that shows this certificate; NotAdmitted, Problem."""
    try:
        tenant, host = parse_san(uri_of(leaf))
        tenant_id, host_id = parse(Kind.TENANT, tenant), parse(Kind.HOST, host)
    except (BadName, BadId):
        raise _refused("its certificate names no host of a tenant") from None
    async with database.tenant(tenant_id) as session:
        found = await session.orm.execute(
            select(TenantAuthority.certificate, Host)
            .join(Host, Host.tenant_id == TenantAuthority.tenant_id)
            .join(Tenant, Tenant.id == TenantAuthority.tenant_id)
            .where(
                TenantAuthority.tenant_id == tenant_id,
                Host.id == host_id,
                Host.state == HostState.ACTIVE,
                Tenant.state == TenantState.ACTIVE,
            )
        )
        row = found.first()
    if row is None:
        raise _refused("there is no such host, or it is shut out")
    _check_issuer(leaf, row[0])
    known = (row[1].key_fingerprint, row[1].previous_key_fingerprint)
    if key_fingerprint(leaf.public_key()) not in known:
        raise _refused("its key is older than its last renewal")
    place = Place(tenant_id, row[1].site_id or NO_SITE)
    return Peer(place, host_id, tenant, host, leaf.not_valid_after_utc)


def _check_issuer(leaf: x509.Certificate, intermediate: str) -> None:
    try:
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(intermediate.encode()))
    except (ValueError, TypeError, InvalidSignature):
        raise _refused("its certificate is not by the authority of the tenant it names") from None


def _refused(why: str) -> NotAdmitted:
    return NotAdmitted(f"Refused: {why}.", hint="Enrol the host anew if it should come in.")
