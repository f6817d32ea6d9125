"""Certificates: one root for the deployment, one client-only intermediate for each tenant.

The root signs servers and intermediates. A tenant's process trusts that tenant's intermediate
alone, so no other tenant's host can come in whatever its certificate says. Of a request to sign,
only the public key is taken: names and extensions are ours.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.kit.problems import Problem
from host_agent.wire.names import INGEST, RESTORE

ROOT_YEARS = 20
INTERMEDIATE_YEARS = 10
HOST_LIFETIME = timedelta(hours=24)
SERVER_LIFETIME = timedelta(days=90)
#: Whether a node may come in is asked of the database each time, so this may be long: a node that
#: was away for weeks comes back by itself.
NODE_LIFETIME = timedelta(days=30)
#: Clocks differ: a certificate is valid from a little before it was made.
_BACKDATED = timedelta(minutes=10)
_REQUEST_BYTES_MAX = 8192

#: The common name of the authority of data nodes and their doors.
NODE_AUTHORITY_NAME = "Holdfast data nodes"

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> str:
        """The certificate in PEM."""
        return pem_of(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM, without a passphrase: to be sealed or written with mode 0600."""
        return key_pem_of(self.key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal digits."""
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


@dataclass(frozen=True)
class ServerCertificate:
    """A server's certificate and key, in PEM."""

    certificate_pem: str
    key_pem: bytes = field(repr=False)


def load_authority(certificate_pem: bytes, key_pem: bytes) -> Authority:
    """An authority from its files; ValueError."""
    key = serialization.load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("The authority's key is not an elliptic curve's.")  # noqa: TRY004
    return Authority(x509.load_pem_x509_certificate(certificate_pem), key)


def make_root(now: datetime) -> Authority:
    """A new deployment's root."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Holdfast deployment root")
    builder = _builder(name, name, key.public_key(), now, timedelta(days=365 * ROOT_YEARS))
    builder = _as_authority(builder, path_length=1)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def tenant_authority_name(tenant: str) -> str:
    """The common name of a tenant's intermediate: the root signs it for no other."""
    return f"Holdfast tenant {tenant}"


def make_intermediate(root: Authority, tenant: str, now: datetime) -> Authority:
    """A tenant's intermediate, for clients only; it signs no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = timedelta(days=365 * INTERMEDIATE_YEARS)
    subject = _name(tenant_authority_name(tenant))
    builder = _builder(subject, root.certificate.subject, key.public_key(), now, lifetime)
    builder = _as_authority(builder, path_length=0)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(usage, critical=True)
    return Authority(builder.sign(root.key, hashes.SHA256()), key)


def sign_host(issuer: Authority, key: PublicKey, uri: str, now: datetime) -> x509.Certificate:
    """A host's certificate: client only, 24 h, one URI name."""
    name = _name("Holdfast host")
    builder = _builder(name, issuer.certificate.subject, key, now, HOST_LIFETIME)
    builder = _as_leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return builder.add_extension(names, critical=False).sign(issuer.key, hashes.SHA256())


def make_node_authority(root: Authority, now: datetime) -> Authority:
    """The authority of data nodes and their doors: of DNS names it may only sign doors'."""
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = timedelta(days=365 * INTERMEDIATE_YEARS)
    subject = _name(NODE_AUTHORITY_NAME)
    builder = _builder(subject, root.certificate.subject, key.public_key(), now, lifetime)
    builder = _as_authority(builder, path_length=0)
    usage = x509.ExtendedKeyUsage(
        [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    )
    doors = x509.NameConstraints([x509.DNSName(INGEST), x509.DNSName(RESTORE)], None)
    builder = builder.add_extension(usage, critical=True).add_extension(doors, critical=True)
    return Authority(builder.sign(root.key, hashes.SHA256()), key)


def sign_node(issuer: Authority, key: PublicKey, uri: str, now: datetime) -> x509.Certificate:
    """A data node's own certificate for the control door: client only, one URI name."""
    name = _name("Holdfast data node")
    builder = _builder(name, issuer.certificate.subject, key, now, NODE_LIFETIME)
    builder = _as_leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return builder.add_extension(names, critical=False).sign(issuer.key, hashes.SHA256())


def sign_door(issuer: Authority, key: PublicKey, name: str, now: datetime) -> x509.Certificate:
    """The certificate of a tenant's service at a data node, for its one server name."""
    subject = _name("Holdfast data door")
    builder = _builder(subject, issuer.certificate.subject, key, now, SERVER_LIFETIME)
    builder = _as_leaf(builder, ExtendedKeyUsageOID.SERVER_AUTH)
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    return builder.add_extension(names, critical=False).sign(issuer.key, hashes.SHA256())


def sign_server(root: Authority, names: Sequence[str], now: datetime) -> ServerCertificate:
    """A server's certificate for DNS names and addresses, with a new key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("Holdfast server")
    builder = _builder(subject, root.certificate.subject, key.public_key(), now, SERVER_LIFETIME)
    builder = _as_leaf(builder, ExtendedKeyUsageOID.SERVER_AUTH)
    listed = x509.SubjectAlternativeName([_general_name(name) for name in names])
    certificate = builder.add_extension(listed, critical=False).sign(root.key, hashes.SHA256())
    return ServerCertificate(pem_of(certificate), key_pem_of(key))


def sign_process(
    root: Authority, uri: str, names: Sequence[str], now: datetime
) -> ServerCertificate:
    """As a server's, and with a URI name: also for calling others of its kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("Holdfast process")
    builder = _builder(subject, root.certificate.subject, key.public_key(), now, SERVER_LIFETIME)
    purposes = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    builder = _as_leaf(builder, *purposes)
    listed = [x509.UniformResourceIdentifier(uri), *(_general_name(name) for name in names)]
    extension = x509.SubjectAlternativeName(listed)
    certificate = builder.add_extension(extension, critical=False).sign(root.key, hashes.SHA256())
    return ServerCertificate(pem_of(certificate), key_pem_of(key))


def key_of_request(pem: str) -> PublicKey:
    """The public key of a certificate request that proves to hold it; Problem `request_refused`.

    Nothing else of the request is looked at: neither its names nor its extensions.
    """
    if len(pem) > _REQUEST_BYTES_MAX:
        raise _refused("it is larger than 8 KiB")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        is_proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise _refused("it is not a certificate request in PEM") from None
    if not is_proven:
        raise _refused("its signature is not of its own key")
    return _accepted(request.public_key())


def _accepted(key: object) -> PublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _refused("its key is neither of ECDSA P-256 nor of Ed25519")


def pem_of(certificate: x509.Certificate) -> str:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PEM, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _refused(why: str) -> Problem:
    return Problem(
        "request_refused", f"The certificate request is refused: {why}.", hint="Make a new one."
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _as_authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    ).add_extension(_usage(signs=True), critical=True)


def _as_leaf(
    builder: x509.CertificateBuilder, *purposes: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
