"""A throw-away certificate authority: one root, a server, clients. For trials and tests only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=365)
# A machine whose clock is a little behind accepts them as well.
BACKDATED = timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class _Subject:
    common_name: str
    extensions: tuple[tuple[x509.ExtensionType, bool], ...]


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """Issues certificates, all ECDSA on P-256, valid for a year from `now`."""

    def __init__(self, common_name: str, now: datetime) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        subject = _Subject(
            common_name,
            (
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (_key_usage(is_authority=True), True),
                (identifier, False),
            ),
        )
        self._certificate = self._sign(subject, self._key.public_key())

    @property
    def issued(self) -> Issued:
        """The authority's own certificate and key."""
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        return Issued(pem, _key_pem(self._key))

    def server(self, dns_names: tuple[str, ...], addresses: tuple[str, ...]) -> Issued:
        """A server's certificate for those names and addresses."""
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        return self._leaf(dns_names[0], names, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, common_name: str, uri: str) -> Issued:
        """A client's certificate that carries its identity as a URI."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        return self._leaf(common_name, names, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _leaf(
        self, common_name: str, names: list[x509.GeneralName], usage: x509.ObjectIdentifier
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        subject = _Subject(
            common_name,
            (
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_key_usage(is_authority=False), True),
                (x509.ExtendedKeyUsage([usage]), False),
                (x509.SubjectAlternativeName(names), False),
                (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
                (issuer, False),
            ),
        )
        certificate = self._sign(subject, key.public_key())
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def _sign(self, subject: _Subject, public_key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject.common_name))
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - BACKDATED)
            .not_valid_after(self._now + LIFETIME)
        )
        for extension, is_critical in subject.extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(self._key, hashes.SHA256())
