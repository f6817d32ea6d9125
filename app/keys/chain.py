"""Whether a key goes to whom it is for: a request's host, a tenant's restore process. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from app.certificates.authority import NODE_AUTHORITY_NAME, tenant_authority_name
from app.keys.port import KeyRefused
from host_agent.wire.envelope import point_of
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.keyrequest import DataKeyRequest, certificates_of, is_signed
from host_agent.wire.names import RESTORE, agent_san, server_name

#: So long after its end a certificate is still believed, as on the data door.
GRACE = timedelta(days=7)


def check_request(request: DataKeyRequest, root: x509.Certificate, now: datetime) -> None:
    """KeyRefused unless the tenant's host that the request names signed it.

    The root vouches for the tenant's intermediate, that intermediate directly for the host.
    """
    try:
        leaf, intermediate = certificates_of(request)
        _check_issued(intermediate, root, "intermediate")
        _check_issued(leaf, intermediate, "certificate")
        _check_named(intermediate, tenant_authority_name(request.tenant), now)
        _check_leaf(leaf, agent_san(request.tenant, request.host), now)
        is_theirs = is_signed(request, leaf)
    except (WireError, ValueError, x509.ExtensionNotFound) as error:
        raise KeyRefused(f"The request's certificates cannot be read: {error}") from None
    if not is_theirs:
        raise KeyRefused("The request is not signed by its certificate's key.")


def check_restore_process(chain: str, tenant: str, root: x509.Certificate, now: datetime) -> bytes:
    """The public point of a tenant's restore process at a data node; KeyRefused for another.

    The root vouches for the authority of data nodes, that authority directly for the process.
    """
    try:
        leaf, authority = x509.load_pem_x509_certificates(chain.encode())
        _check_issued(authority, root, "authority")
        _check_issued(leaf, authority, "certificate")
        _check_named(authority, NODE_AUTHORITY_NAME, now)
        _check_door(leaf, server_name(tenant, RESTORE), now)
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise KeyRefused("The restore process's key is not of P-256.")
        return point_of(key)
    except (HoldfastError, ValueError, x509.ExtensionNotFound) as error:
        if isinstance(error, KeyRefused):
            raise
        raise KeyRefused(f"The restore process's certificates cannot be read: {error}") from None


def _check_door(certificate: x509.Certificate, name: str, now: datetime) -> None:
    find = certificate.extensions.get_extension_for_class
    names = list(find(x509.SubjectAlternativeName).value)
    usage = list(find(x509.ExtendedKeyUsage).value)
    if names != [x509.DNSName(name)] or usage != [ExtendedKeyUsageOID.SERVER_AUTH]:
        raise KeyRefused("The certificate is not that of the tenant's restore process.")
    if find(x509.BasicConstraints).value.ca:
        raise KeyRefused("The certificate is that of an authority.")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise KeyRefused("The restore process's certificate is not valid now.")


def _check_issued(issued: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise KeyRefused(f"The host's {what} is not issued by whom it should be.") from None


def _check_named(certificate: x509.Certificate, name: str, now: datetime) -> None:
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if [name.value for name in names] != [name] or not limits.ca:
        raise KeyRefused("The intermediate is that of somebody else.")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise KeyRefused("The intermediate is not valid now.")


def _check_leaf(certificate: x509.Certificate, uri: str, now: datetime) -> None:
    find = certificate.extensions.get_extension_for_class
    names = list(find(x509.SubjectAlternativeName).value)
    if names != [x509.UniformResourceIdentifier(uri)]:
        raise KeyRefused("The host's certificate names another than the request.")
    usage = list(find(x509.ExtendedKeyUsage).value)
    if find(x509.BasicConstraints).value.ca or usage != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise KeyRefused("The certificate is none of a host.")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc + GRACE:
        raise KeyRefused(
            "The host's certificate is not valid now.",
            hint="Check the host's clock, then `holdfast-agent renew`.",
        )
