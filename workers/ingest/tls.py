"""The door: TLS 1.3 alone, a client certificate of the tenant's own authority, one protocol name.

Everything about the peer is decided before its first application byte is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from OpenSSL import SSL, crypto

from host_agent.wire.errors import BadName
from host_agent.wire.message import ALPN
from host_agent.wire.names import parse_san
from host_agent.wire.tls import PARTIAL_WRITE, Unusable, believe, reason_of, show, uri_names
from workers.ingest.config import TlsConfig
from workers.ingest.decide import Peer
from workers.ingest.errors import BadConfig, CloseCode, SessionEnded

#: X509_V_FLAG_NO_CHECK_TIME: a certificate's time is then ours to check.
_NO_CHECK_TIME = 0x200000


@dataclass(frozen=True)
class ServerIdentity:
    """A certificate with what it chains to, and its key: both PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Shown:
    """What a peer showed in its handshake: the protocol, and of its certificate the URIs and the
    times, seconds UTC, from which and to which it is valid.
    """

    protocol: str
    uris: tuple[str, ...]
    valid_from: float = -math.inf
    valid_to: float = math.inf


def shown_by(connection: SSL.Connection) -> Shown:
    """What the peer showed in a handshake that is over."""
    protocol = connection.get_alpn_proto_negotiated().decode("latin-1")
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        return Shown(protocol, ())
    times = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return Shown(protocol, tuple(uri_names(certificate)), *(time.timestamp() for time in times))


def tenant_context(
    identity: ServerIdentity, intermediate: str, protocol: str = ALPN
) -> SSL.Context:
    """The context of a process that a data node runs for one tenant, made from memory; BadConfig.

    It trusts that tenant's intermediate and nothing else, and does not look at the time of clients'
    certificates: `check_validity` does.
    """
    context = _bare_context(protocol, _NO_CHECK_TIME)
    try:
        show(context, identity.certificate.encode(), identity.key.encode())
        believe(context, intermediate.encode())
    except Unusable as error:
        raise BadConfig(
            f"The tenant's certificates cannot be used: {error}.",
            hint="They come from the control plane: is this node of its deployment?",
        ) from None
    return context


def _bare_context(protocol: str, flags: int = 0) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.clear_mode(PARTIAL_WRITE)
    context.set_alpn_select_callback(partial(_select, protocol.encode()))
    # A session that could be resumed would let a client in again without showing its certificate.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
    store = context.get_cert_store()
    assert store is not None
    # The deployment may trust one tenant's intermediate without the root above it.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN | flags)
    return context


def _select(ours: bytes, _connection: SSL.Connection, offered: list[bytes]) -> Any:
    return ours if ours in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def server_context(config: TlsConfig) -> SSL.Context:
    """The context of this tenant's process; BadConfig names the file that is wrong."""
    context = _bare_context(ALPN)
    try:
        show(context, config.certificate_file.read_bytes(), config.key_file.read_bytes())
    except (Unusable, OSError) as error:
        raise BadConfig(
            f"The certificate {config.certificate_file} and the key {config.key_file} "
            f"cannot be used: {reason_of(error)}.",
            hint="Both in PEM, the key without a passphrase and belonging to the certificate.",
        ) from None
    try:
        believe(context, config.client_ca_file.read_bytes())
    except (Unusable, OSError) as error:
        raise BadConfig(
            f"The client authority {config.client_ca_file} cannot be used: {reason_of(error)}.",
            hint="It is the certificate, in PEM, that signed the agents' certificates.",
        ) from None
    return context


def peer_of(shown: Shown, address: str, protocol: str = ALPN) -> Peer:
    """Who holds the client certificate; SessionEnded where it names no agent of a tenant."""
    if shown.protocol != protocol:
        raise _refused(f"the client did not ask for the protocol {protocol}")
    if len(shown.uris) != 1:
        raise _refused(f"the certificate has {len(shown.uris)} URI names instead of one")
    try:
        tenant, host = parse_san(shown.uris[0])
    except BadName as error:
        raise _refused(error.message) from None
    return Peer(tenant, host, address, shown.valid_from, shown.valid_to)


def _refused(why: str) -> SessionEnded:
    return SessionEnded(CloseCode.NOT_AUTHORISED, f"Refused: {why}.")
