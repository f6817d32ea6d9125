"""TLS of the door for restores, for asyncio's own streams: the rules are those of ingest's door."""

from __future__ import annotations

import os
import ssl
from typing import Any

from host_agent.wire.restoring import ALPN
from workers.ingest.errors import BadConfig
from workers.ingest.tls import ServerIdentity, Shown

#: A tenant's process trusts its tenant's intermediate without the root above it.
_FLAGS = ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
#: X509_V_FLAG_NO_CHECK_TIME: a certificate's time is ours to check.
_NO_CHECK_TIME = 0x200000


def restore_context(identity: ServerIdentity, intermediate: str) -> ssl.SSLContext:
    """The context of one tenant's process, made from memory; BadConfig.

    It trusts that tenant's intermediate and nothing else, and does not look at the time of clients'
    certificates: `check_validity` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _FLAGS | _NO_CHECK_TIME)
    context.set_alpn_protocols([ALPN])
    # A ticket would let a client in again without showing its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    # OpenSSL's call takes a file's name; this file is in memory and in no folder.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(f"{identity.certificate}\n{identity.key}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        context.load_verify_locations(cadata=intermediate)
    except (ssl.SSLError, OSError) as error:
        raise BadConfig(
            f"The tenant's certificates cannot be used: {error.strerror or error}.",
            hint="They come from the control plane: is this node of its deployment?",
        ) from None
    finally:
        os.close(descriptor)
    return context


def shown_by(tls: ssl.SSLObject) -> Shown:
    """What the peer showed in a handshake that is over."""
    protocol = tls.selected_alpn_protocol() or ""
    certificate: dict[str, Any] | None = tls.getpeercert()
    if not certificate:
        return Shown(protocol, ())
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    times = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    return Shown(protocol, tuple(uris), *times)
