"""A host that joins, in a test: its key, its request, its calls."""

from __future__ import annotations

import base64
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from httpx2 import Response

from app.hosts.enrolment import RENEWAL_CONTEXT
from tests.app.service import Caller

Key = ec.EllipticCurvePrivateKey


def make_key() -> Key:
    """A host's key."""
    return ec.generate_private_key(ec.SECP256R1())


def request_of(key: Any, *extensions: x509.ExtensionType) -> str:
    """A certificate request; what it claims besides the key is for the server to ignore."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    request = builder.sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


async def make_join_token(tenant: Caller, name: str, **options: Any) -> tuple[str, str]:
    """(id, token) of a right to join."""
    answer = await tenant.post("/v1/join-tokens", {"name": name, **options})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.json()["token"]


async def enrol(tenant: Caller, token: str, request: str) -> Response:
    """Join with a token."""
    body = {"certificate_request": request, "agent_version": "1.2.3"}
    return await Caller(tenant.http, token).post("/v1/enrolments", body)


async def join_host(tenant: Caller, name: str) -> tuple[str, str]:
    """(host id, join token id) of a host that joined."""
    token_id, token = await make_join_token(tenant, name)
    answer = await enrol(tenant, token, request_of(make_key()))
    assert answer.status_code == 201, answer.text
    return answer.json()["host_id"], token_id


def renewal(certificate: str, old: Key, request: str) -> dict[str, str]:
    """The body of a renewal."""
    signature = old.sign(RENEWAL_CONTEXT + request.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "certificate": certificate,
        "certificate_request": request,
        "signature": base64.b64encode(signature).decode(),
        "agent_version": "1.2.4",
    }
