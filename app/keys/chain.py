"""Whether a data key request comes from the host that it names. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from app.certificates.authority import tenant_authority_name
from app.keys.port import KeyRefused
from host_agent.wire.errors import WireError
from host_agent.wire.keyrequest import DataKeyRequest, certificates_of, is_signed
from host_agent.wire.names import agent_san

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
        _check_intermediate(intermediate, request.tenant, now)
        _check_leaf(leaf, agent_san(request.tenant, request.host), now)
        is_theirs = is_signed(request, leaf)
    except (WireError, ValueError, x509.ExtensionNotFound) as error:
        raise KeyRefused(f"The request's certificates cannot be read: {error}") from None
    if not is_theirs:
        raise KeyRefused("The request is not signed by its certificate's key.")


def _check_issued(issued: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise KeyRefused(f"The host's {what} is not issued by whom it should be.") from None


def _check_intermediate(certificate: x509.Certificate, tenant: str, now: datetime) -> None:
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if [name.value for name in names] != [tenant_authority_name(tenant)] or not limits.ca:
        raise KeyRefused("The intermediate is not that of the request's tenant.")
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
