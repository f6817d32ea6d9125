"""What both ends of a TLS connection say of it: names in certificates, OpenSSL's errors in words.

The library is pyOpenSSL, over the OpenSSL that comes with `cryptography`.
"""

from __future__ import annotations

import ipaddress
import os

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL, crypto

#: The most that one read can give: the payload of one TLS record.
RECORD_BYTES = 16 * 1024
#: SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets and does not name.
PARTIAL_WRITE = 1

#: OpenSSL's X509_V_ERR_... that a deployment can meet.
_VERIFY_ERRORS = {
    7: "its signature is wrong",
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is signed by itself",
    19: "its authority is not the one that is believed",
    20: "its authority is not the one that is believed",
    21: "its authority is not the one that is believed",
    24: "its authority is no authority",
    26: "it is not for this purpose",
    79: "its authority is no authority",
}


_ffi, _lib = Binding.ffi, Binding.lib


class Connection(SSL.Connection):
    """A connection that fills memory with what many TLS records hold."""

    def fill(self, into: memoryview) -> tuple[int, Exception | None]:
        """Bytes that came, until `into` is full or TLS waits or ended, and what it waits for.

        As `recv_into` for each record, which decrypts into memory of its own and copies that, and
        costs more than the decryption does.
        """
        at, length, read, ssl = 0, len(into), _lib.SSL_read, self._ssl
        with _ffi.from_buffer(into, require_writable=True) as start:
            while at < length:
                count = read(ssl, start + at, length - at)
                if count <= 0:
                    return at, self._why(count)
                at += count
        return at, None

    def _why(self, result: int) -> Exception | None:
        try:
            self._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            return error
        return None


class Unusable(Exception):
    """A certificate or a key that TLS cannot use; the text says why."""


def show(context: SSL.Context, certificate: bytes, key: bytes) -> None:
    """Have a side show this chain, its own certificate first; both in PEM. Unusable."""
    try:
        own, *above = x509.load_pem_x509_certificates(certificate)
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Unusable(str(error).partition("(")[0].strip(" .")) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey):
        raise Unusable("keys of this kind are not supported")
    try:
        context.use_certificate(own)
        for one in above:
            context.add_extra_chain_cert(one)
        context.use_privatekey(private)
        context.check_privatekey()
    except (SSL.Error, TypeError) as error:
        raise Unusable(reason_of(error)) from None


def believe(context: SSL.Context, authorities: bytes) -> None:
    """Have a side believe what these authorities signed, in PEM. Unusable."""
    try:
        store = context.get_cert_store()
        assert store is not None
        for authority in x509.load_pem_x509_certificates(authorities):
            store.add_cert(crypto.X509.from_cryptography(authority))
    except ValueError as error:
        raise Unusable(str(error).partition("(")[0].strip(" .")) from None


def reason_of(error: BaseException) -> str:
    """An error of TLS or of the socket below it, in words; lower case."""
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if error.args else -1
        return os.strerror(number).lower() if number > 0 else "the connection ended"
    if isinstance(error, SSL.Error):
        stack = error.args[0] if error.args else ()
        reasons = [entry[2] for entry in stack if len(entry) > 2 and entry[2]]
        return str(reasons[-1]).lower() if reasons else type(error).__name__
    if isinstance(error, Unusable):
        return str(error)
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text).lower()


def is_end(error: BaseException) -> bool:
    """Whether the peer ended the connection, with or without TLS's own goodbye."""
    if isinstance(error, SSL.SysCallError):
        return bool(error.args) and error.args[0] == -1
    return isinstance(error, SSL.ZeroReturnError)


def uri_names(certificate: x509.Certificate) -> list[str]:
    """The URIs that a certificate names its holder by; none if what it says cannot be read."""
    names = _names(certificate)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        found = certificate.extensions.get_extension_for_oid(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        ).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    return found if isinstance(found, x509.SubjectAlternativeName) else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class ServerCheck:
    """What a client asks of a server's certificate besides its chain: whose it is.

    OpenSSL calls it for each certificate of the chain, the server's own last. A name has to be in
    the certificate as it is, without wildcards; an address as an address.
    """

    def __init__(self, name: str) -> None:
        self.name = name.lower()
        self._address = _address(name)
        #: Why the certificate was refused; empty while it was not.
        self.refused = ""
        #: The server's own certificate was looked at, and is the named server's.
        self.is_passed = False

    @property
    def is_address(self) -> bool:
        """Whether the server is known by its address, and not by a name."""
        return self._address is not None

    def __call__(
        self, _connection: SSL.Connection, shown: crypto.X509, error: int, depth: int, ok: int
    ) -> bool:
        """Whether the chain may be believed so far."""
        if not ok:
            self.refused = _VERIFY_ERRORS.get(error, f"OpenSSL found error {error} in it")
        elif depth == 0:
            self.is_passed = self._is_named(shown.to_cryptography())
            self.refused = "" if self.is_passed else f"it is not of {self.name}"
        return not self.refused

    def _is_named(self, certificate: x509.Certificate) -> bool:
        names = _names(certificate)
        if names is None:
            return False
        if self._address is not None:
            return self._address in names.get_values_for_type(x509.IPAddress)
        return self.name in (name.lower() for name in names.get_values_for_type(x509.DNSName))
