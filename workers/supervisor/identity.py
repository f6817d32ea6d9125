"""Who this data node is: its own certificate and key, and whom it believes.

It joins once with a token that pins the deployment's root by its hash. The root is fetched over a
connection that is not believed yet, compared, and only one that it vouches for is sent anything.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from host_agent.wire.errors import HoldfastError
from workers.supervisor.record import replace_file

_TOKEN = re.compile(r"hfn_[0-9a-z]{26}_[0-9a-f]{64}_([0-9a-f]{64})")
_SECONDS_MAX = 20.0
_ANSWER_BYTES_MAX = 64 * 1024
PEM, ROOT = "node.pem", "root.crt"


class JoiningFailed(HoldfastError):
    """The node did not get a certificate; what it had is unchanged."""

    code = "joining_failed"


class NotJoined(HoldfastError):
    """The folder holds no identity of a data node."""

    code = "not_joined"


@dataclass(frozen=True)
class NodeIdentity:
    """The files of the folder, and when the certificate is to be renewed."""

    directory: Path
    renew_at: datetime

    def context(self) -> ssl.SSLContext:
        """For the control door; NotJoined if the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.directory / ROOT)
            context.load_cert_chain(self.directory / PEM)
        except (OSError, ssl.SSLError) as error:
            raise _not_joined(self.directory, str(error)) from None
        return context


@dataclass(frozen=True)
class NewKey:
    """A private key, and the request to sign it."""

    private: str = field(repr=False)
    request: str


def make_key() -> NewKey:
    """A new key on P-256; both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return NewKey(private.decode(), signed.decode())


def renewal_of(certificates: str) -> datetime:
    """When the first certificate of a PEM is to be renewed: half of its life; ValueError."""
    leaf = x509.load_pem_x509_certificates(certificates.encode())[0]
    return leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2


def load_identity(directory: Path) -> NodeIdentity:
    """What the folder holds; NotJoined."""
    try:
        return NodeIdentity(directory, renewal_of((directory / PEM).read_text()))
    except (OSError, ValueError, IndexError) as error:
        raise _not_joined(directory, str(error)) from None


def keep_identity(directory: Path, certificates: str, key: NewKey) -> NodeIdentity:
    """Certificate and key are one file, so that they change together; OSError, ValueError."""
    renew_at = renewal_of(certificates)
    replace_file(directory / PEM, f"{certificates}\n{key.private}".encode())
    return NodeIdentity(directory, renew_at)


def join(api: str, token: str, directory: Path) -> NodeIdentity:
    """Join with a token, in place of what the folder held; JoiningFailed."""
    pinned = _TOKEN.fullmatch(token.strip())
    if pinned is None:
        raise JoiningFailed(
            "This is not a data node's join token.", hint="Copy it whole: it begins with hfn_."
        )
    root = _fetch_root(api, pinned[1])
    key = make_key()
    body = {"certificate_request": key.request, "agent_version": version("holdfast")}
    believing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    believing.minimum_version = ssl.TLSVersion.TLSv1_3
    believing.load_verify_locations(cadata=root)
    answer = _call(api, believing, "/v1/data-node-enrolments", body, token.strip())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(directory / ROOT, root.encode())
    return keep_identity(directory, str(answer["certificate"]), key)


def _fetch_root(api: str, pinned: str) -> str:
    unbelieved = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unbelieved.check_hostname = False
    unbelieved.verify_mode = ssl.CERT_NONE
    answer = _call(api, unbelieved, "/v1/root-certificate", None, None)
    try:
        pem = str(answer["certificate"])
        der = ssl.PEM_cert_to_DER_cert(pem.strip())
    except (KeyError, ValueError):
        raise JoiningFailed(f"{api} is not a Holdfast.", hint="Check --api.") from None
    if hashlib.sha256(der).hexdigest() != pinned:
        raise JoiningFailed(
            f"{api} shows another root certificate than the join token pins. Nothing was sent.",
            hint="Check --api. If it is right, somebody stands between.",
        )
    return pem


def _call(
    api: str,
    context: ssl.SSLContext,
    path: str,
    body: Mapping[str, Any] | None,
    token: str | None,
) -> dict[str, Any]:
    place = urlsplit(api)
    if place.scheme != "https" or not place.hostname:
        raise JoiningFailed(f"{api} is not an https:// address.", hint="Check --api.")
    connection = http.client.HTTPSConnection(
        place.hostname, place.port or 443, timeout=_SECONDS_MAX, context=context
    )
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, headers)
        answer = connection.getresponse()
        document = json.loads(answer.read(_ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise JoiningFailed(
            f"{api} does not answer as a Holdfast: {error}.",
            hint="Check --api and the network.",
            retryable=True,
        ) from None
    finally:
        connection.close()
    if answer.status >= 400 or not isinstance(document, dict):
        said = document.get("detail") if isinstance(document, dict) else None
        raise JoiningFailed(
            str(said or f"{api} answered with status {answer.status}."),
            hint="Join tokens work once, for minutes: ask for a new one with :invite.",
        )
    return document


def _not_joined(directory: Path, why: str) -> NotJoined:
    return NotJoined(
        f"{directory} holds no identity of a data node: {why}.",
        hint="Join with `holdfast datanode join`.",
    )
