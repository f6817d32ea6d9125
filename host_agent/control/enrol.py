"""How a host gets its identity: once by a join token, then by the key that it has.

The join token pins the deployment's root by its hash. The root is fetched over a connection that is
not believed yet, compared, and only a connection that it vouches for is sent anything.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from host_agent import __version__
from host_agent.stream.tunnel import proxy_for
from host_agent.wire.errors import HoldfastError

_TOKEN = re.compile(r"hfj_[0-9a-z]{26}_[0-9a-z]{26}_[0-9a-f]{64}_([0-9a-f]{64})")
_SECONDS_MAX = 20.0
_ANSWER_BYTES_MAX = 64 * 1024
#: What the old key signs: this, then the certificate request's PEM.
RENEWAL_CONTEXT = b"holdfast renewal v1\0"
IDENTITY, PEM, ROOT = "identity.json", "agent.pem", "root.crt"


class EnrolmentFailed(HoldfastError):
    """The host did not get a certificate; what it had is unchanged."""

    code = "enrolment_failed"


class ServiceNotBelieved(EnrolmentFailed):
    """Whoever answered is not the deployment that the join token is of."""

    code = "service_not_believed"


class AlreadyEnrolled(EnrolmentFailed):
    """The folder holds an identity, which is never overwritten."""

    code = "already_enrolled"


@dataclass(frozen=True)
class Identity:
    """What the folder holds: who this host is, and where it renews."""

    directory: Path
    api: str
    facts: Mapping[str, Any]

    @property
    def control_doors(self) -> tuple[str, ...]:
        """Where managers are, HOST:PORT, as the service said when the host joined or renewed."""
        return tuple(str(door) for door in self.facts.get("control_doors") or ())

    @property
    def shown(self) -> dict[str, Any]:
        """For people and for `--json`."""
        names = ("tenant_id", "host_id", "uri", "expires_at", "renew_at")
        return {name: self.facts[name] for name in names} | {
            "certificate_file": str(self.directory / PEM),
            "key_file": str(self.directory / PEM),
            "ca_file": str(self.directory / ROOT),
        }


def enrol(api: str, token: str, directory: Path) -> Identity:
    """Join with a token; AlreadyEnrolled, ServiceNotBelieved, EnrolmentFailed."""
    if (directory / IDENTITY).exists():
        raise AlreadyEnrolled(
            f"{directory} already holds an identity.",
            hint="`holdfast-agent renew` renews it; name another folder for another one.",
        )
    pinned = _TOKEN.fullmatch(token.strip())
    if pinned is None:
        raise EnrolmentFailed(
            "This is not a join token.", hint="Copy it whole: it begins with hfj_."
        )
    root = _fetch_root(api, pinned[1])
    key = ec.generate_private_key(ec.SECP256R1())
    body = {"certificate_request": _request(key), "agent_version": __version__}
    headers = {"authorization": f"Bearer {token.strip()}"}
    facts = _call(api, _believing(root), "/v1/enrolments", body, headers)
    return _keep(directory, api, root, key, facts)


def renew(directory: Path) -> Identity:
    """A new key and certificate for the identity of the folder; EnrolmentFailed."""
    old = load_identity(directory)
    pem = (directory / PEM).read_bytes()
    held = serialization.load_pem_private_key(pem, None)
    assert isinstance(held, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    request = _request(key)
    signature = held.sign(RENEWAL_CONTEXT + request.encode(), ec.ECDSA(hashes.SHA256()))
    leaf = x509.load_pem_x509_certificates(pem)[0]
    body = {
        "certificate": leaf.public_bytes(serialization.Encoding.PEM).decode(),
        "certificate_request": request,
        "signature": base64.b64encode(signature).decode(),
        "agent_version": __version__,
    }
    root = (directory / ROOT).read_text()
    facts = _call(old.api, _believing(root), "/v1/renewals", body, {})
    return _keep(directory, old.api, root, key, facts)


def load_identity(directory: Path) -> Identity:
    """What the folder holds; EnrolmentFailed if there is none."""
    try:
        facts = json.loads((directory / IDENTITY).read_text())
        return Identity(directory, str(facts["api"]), facts)
    except (OSError, ValueError, KeyError):
        raise EnrolmentFailed(
            f"{directory} holds no identity of a host.", hint="Join with `holdfast-agent enrol`."
        ) from None


def time_of_service(identity: Identity) -> str:
    """What time the service says it is, ISO 8601; ServiceNotBelieved, EnrolmentFailed."""
    context = _believing((identity.directory / ROOT).read_text())
    return str(_call(identity.api, context, "/v1/root-certificate", None, {}).get("time", ""))


def set_control_doors(directory: Path, doors: list[str]) -> None:
    """Remember where managers are, HOST:PORT."""
    facts = {**load_identity(directory).facts, "control_doors": doors}
    _write(directory / IDENTITY, json.dumps(facts, indent=2).encode())


def _fetch_root(api: str, pinned: str) -> str:
    """The root's PEM; ServiceNotBelieved unless it is the pinned one. Nothing of ours is sent."""
    unbelieved = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unbelieved.check_hostname = False
    unbelieved.verify_mode = ssl.CERT_NONE
    answer = _call(api, unbelieved, "/v1/root-certificate", None, {})
    try:
        pem = str(answer["certificate"])
        der = ssl.PEM_cert_to_DER_cert(pem.strip())
    except (KeyError, ValueError):
        raise EnrolmentFailed(f"{api} is not a Holdfast.", hint="Check --api.") from None
    if hashlib.sha256(der).hexdigest() != pinned:
        raise ServiceNotBelieved(
            f"{api} shows another root certificate than the join token pins. Nothing was sent.",
            hint="Check --api. If it is right, somebody stands between: tell your provider.",
        )
    return pem


def _believing(root: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root)
    return context


def _call(
    api: str,
    context: ssl.SSLContext,
    path: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
) -> dict[str, Any]:
    connection = _connection(api, context)
    try:
        data = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, data, sent)
        answer = connection.getresponse()
        text = answer.read(_ANSWER_BYTES_MAX)
    except ssl.SSLCertVerificationError as error:
        raise ServiceNotBelieved(
            f"{api} shows a certificate that is not believed: {error.verify_message}.",
            hint="Check --api: it must be a name that the service's certificate has.",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise EnrolmentFailed(
            f"{api} does not answer: {error}.", hint="Check --api and the network.", retryable=True
        ) from None
    finally:
        connection.close()
    return _read(api, answer.status, text)


def _connection(api: str, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    place = urlsplit(api)
    if place.scheme != "https" or not place.hostname:
        raise EnrolmentFailed(f"{api} is not an https:// address.", hint="Check --api.")
    try:
        proxy = proxy_for(place.hostname)
    except OSError as error:
        raise EnrolmentFailed(f"{error}.", hint="Correct HTTPS_PROXY.") from None
    address = (place.hostname, place.port or 443)
    if proxy is None:
        return http.client.HTTPSConnection(*address, timeout=_SECONDS_MAX, context=context)
    connection = http.client.HTTPSConnection(
        proxy.host, proxy.port, timeout=_SECONDS_MAX, context=context
    )
    secret = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
    connection.set_tunnel(*address, secret)
    return connection


def _read(api: str, status: int, text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise EnrolmentFailed(f"{api} is not a Holdfast.", hint="Check --api.")
    if status >= 400:
        said = str(document.get("detail") or document.get("title") or f"status {status}")
        hint = str(document.get("hint") or "")
        if status == 401:
            hint = "Join tokens work once, for minutes, for one host: ask for a new one."
        raise EnrolmentFailed(said, hint=hint, retryable=bool(document.get("retryable")))
    return document


def _request(key: ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def _keep(
    directory: Path, api: str, root: str, key: ec.EllipticCurvePrivateKey, facts: dict[str, Any]
) -> Identity:
    """Certificate and key are one file, so that they change together."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if not facts.get("control_doors"):
        facts = {**facts, **_known(directory)}
    facts = {**facts, "api": api}
    certificate = str(facts.pop("certificate"))
    facts.pop("root_certificate", None)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(directory / PEM, certificate.encode() + private)
    _write(directory / ROOT, root.encode())
    _write(directory / IDENTITY, json.dumps(facts, indent=2).encode())
    return Identity(directory, api, facts)


def _known(directory: Path) -> dict[str, Any]:
    """What a service of an earlier version said once and does not repeat."""
    try:
        doors = load_identity(directory).control_doors
    except EnrolmentFailed:
        return {}
    return {"control_doors": list(doors)} if doors else {}


def _write(file: Path, data: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)
