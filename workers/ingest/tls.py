"""The door: TLS 1.3 alone, a client certificate of the tenant's own authority, one protocol name.

Everything about the peer is decided before its first application byte is read.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from typing import Any

from host_agent.wire.errors import BadName
from host_agent.wire.message import ALPN
from host_agent.wire.names import parse_san
from workers.ingest.config import TlsConfig
from workers.ingest.decide import Peer
from workers.ingest.errors import BadConfig, CloseCode, SessionEnded

#: The deployment may trust one tenant's intermediate without the root above it.
_FLAGS = ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST


#: X509_V_FLAG_NO_CHECK_TIME: a certificate's time is then ours to check.
_NO_CHECK_TIME = 0x200000


@dataclass(frozen=True)
class ServerIdentity:
    """A certificate with what it chains to, and its key: both PEM."""

    certificate: str
    key: str = field(repr=False)


def tenant_context(
    identity: ServerIdentity, intermediate: str, protocol: str = ALPN
) -> ssl.SSLContext:
    """The context of a process that a data node runs for one tenant, made from memory; BadConfig.

    It trusts that tenant's intermediate and nothing else, and does not look at the time of clients'
    certificates: `check_validity` does.
    """
    context = _bare_context(protocol)
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    # OpenSSL's call takes a file's name; this file is in memory and in no folder.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(f"{identity.certificate}\n{identity.key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        context.load_verify_locations(cadata=intermediate)
    except (ssl.SSLError, OSError) as error:
        raise BadConfig(
            f"The tenant's certificates cannot be used: {_reason(error)}.",
            hint="They come from the control plane: is this node of its deployment?",
        ) from None
    finally:
        os.close(descriptor)
    return context


def server_context(config: TlsConfig) -> ssl.SSLContext:
    """The context of this tenant's process; BadConfig names the file that is wrong."""
    context = _bare_context(ALPN)
    try:
        context.load_cert_chain(config.certificate_file, config.key_file)
    except (ssl.SSLError, OSError) as error:
        raise BadConfig(
            f"The certificate {config.certificate_file} and the key {config.key_file} "
            f"cannot be used: {_reason(error)}.",
            hint="Both in PEM, the key without a passphrase and belonging to the certificate.",
        ) from None
    try:
        context.load_verify_locations(config.client_ca_file)
    except (ssl.SSLError, OSError) as error:
        raise BadConfig(
            f"The client authority {config.client_ca_file} cannot be used: {_reason(error)}.",
            hint="It is the certificate, in PEM, that signed the agents' certificates.",
        ) from None
    return context


def _bare_context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _FLAGS
    context.set_alpn_protocols([protocol])
    # A ticket would let a client in again without showing its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    return context


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or getattr(error, "strerror", None) or type(error).__name__)


def peer_of(tls: ssl.SSLObject | ssl.SSLSocket, address: str, protocol: str = ALPN) -> Peer:
    """Who holds the client certificate; SessionEnded where it names no agent of a tenant."""
    if tls.selected_alpn_protocol() != protocol:
        raise _refused(f"the client did not ask for the protocol {protocol}")
    certificate: dict[str, Any] = tls.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise _refused(f"the certificate has {len(uris)} URI names instead of one")
    try:
        tenant, host = parse_san(uris[0])
    except BadName as error:
        raise _refused(error.message) from None
    times = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    return Peer(tenant, host, address, *times)


def _refused(why: str) -> SessionEnded:
    return SessionEnded(CloseCode.NOT_AUTHORISED, f"Refused: {why}.")
