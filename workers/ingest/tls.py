"""The door: TLS 1.3 alone, a client certificate of the tenant's own authority, one protocol name.

Everything about the peer is decided before its first application byte is read.
"""

from __future__ import annotations

import ssl
from typing import Any

from host_agent.wire.errors import BadName
from host_agent.wire.message import ALPN
from host_agent.wire.names import parse_san
from workers.ingest.config import TlsConfig
from workers.ingest.decide import Peer
from workers.ingest.errors import BadConfig, CloseCode, SessionEnded

#: The deployment may trust one tenant's intermediate without the root above it.
_FLAGS = ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST


def server_context(config: TlsConfig) -> ssl.SSLContext:
    """The context of this tenant's process; BadConfig names the file that is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _FLAGS
    context.set_alpn_protocols([ALPN])
    # A ticket would let a client in again without showing its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
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


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or getattr(error, "strerror", None) or type(error).__name__)


def peer_of(tls: ssl.SSLObject | ssl.SSLSocket, address: str) -> Peer:
    """Who holds the client certificate; SessionEnded where it names no agent of a tenant."""
    if tls.selected_alpn_protocol() != ALPN:
        raise _refused("the client did not ask for the protocol holdfast/1")
    certificate: dict[str, Any] = tls.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise _refused(f"the certificate has {len(uris)} URI names instead of one")
    try:
        tenant, host = parse_san(uris[0])
    except BadName as error:
        raise _refused(error.message) from None
    return Peer(tenant, host, address)


def _refused(why: str) -> SessionEnded:
    return SessionEnded(CloseCode.NOT_AUTHORISED, f"Refused: {why}.")
