"""An ID token, checked: algorithm, key, issuer, audience, times, nonce. Pure. Loaded when the first
one comes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from app.oidc.identity import BadIdToken, Expected, Identity, UnknownKey

#: What is accepted, whatever an issuer or a token says of itself.
ALGORITHMS = ("RS256", "PS256", "ES256")
_KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC"}
_RSA_BITS_MIN = 2048
_KEYS_MAX = 100
#: Keys that a token brings along, or says where to fetch, are never believed.
_REFUSED_HEADERS = ("crit", "jku", "jwk", "x5u", "x5c", "b64", "zip")
_LEEWAY_SECONDS = 60
_SUBJECT_LENGTH_MAX = 255
_TOKEN_LENGTH_MAX = 64 * 1024
PublicKey = RSAKey | ECKey


def read_keys(document: Any) -> list[PublicKey]:
    """The keys of a JWKS that can sign what we accept; BadIdToken."""
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise BadIdToken("the issuer's keys are not a JWKS")
    keys = [_read_key(entry) for entry in listed[:_KEYS_MAX]]
    return [key for key in keys if key is not None]


def _read_key(entry: Any) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    try:
        key = JWKRegistry.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError, binascii.Error):
        return None
    if isinstance(key, RSAKey):
        return key if key.raw_value.key_size >= _RSA_BITS_MIN else None
    return key if isinstance(key, ECKey) and key.curve_name == "P-256" else None


def check_id_token(text: str, keys: Sequence[PublicKey], expected: Expected) -> Identity:
    """Whom a token vouches for; BadIdToken, UnknownKey if other keys could help."""
    header = _header(text)
    algorithm = header.get("alg")
    if algorithm not in ALGORITHMS:
        raise BadIdToken("its algorithm is not accepted")
    refused = [name for name in _REFUSED_HEADERS if name in header]
    if refused:
        raise BadIdToken(f"its header has {refused[0]}")
    if str(header.get("typ", "JWT")).upper() != "JWT":
        raise BadIdToken("it is of another type")
    key = _key_of(header, algorithm, keys)
    try:
        claims = jwt.decode(text, key, algorithms=[algorithm]).claims
        _registry(expected).validate(claims)
    except (JoseError, ValueError, TypeError) as error:
        raise BadIdToken(f"it does not verify: {type(error).__name__}") from None
    return _identity(claims, expected)


def _header(text: str) -> dict[str, Any]:
    if not text.isascii() or text.count(".") != 2 or len(text) > _TOKEN_LENGTH_MAX:
        raise BadIdToken("it is not a signed token")
    encoded = text.split(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise BadIdToken("its header cannot be read") from None
    if not isinstance(header, dict):
        raise BadIdToken("its header cannot be read")
    return header


def _key_of(header: dict[str, Any], algorithm: str, keys: Sequence[PublicKey]) -> PublicKey:
    wanted = _KEY_TYPES[algorithm]
    fitting = [
        key for key in keys if key.key_type == wanted and key.get("alg", algorithm) == algorithm
    ]
    if "kid" not in header:
        if len(fitting) != 1:
            raise BadIdToken("it names no key, and the issuer has several")
        return fitting[0]
    kid = header["kid"]
    found = [key for key in fitting if isinstance(kid, str) and key.kid == kid]
    if not found:
        raise UnknownKey("its key is not one of the issuer's")
    return found[0]


def _registry(expected: Expected) -> JWTClaimsRegistry:
    return JWTClaimsRegistry(
        now=int(expected.now.timestamp()),
        leeway=_LEEWAY_SECONDS,
        iss={"essential": True, "value": expected.issuer},
        aud={"essential": True, "value": expected.client_id},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
        nonce={"essential": True},
    )


def _identity(claims: dict[str, Any], expected: Expected) -> Identity:
    nonce = claims["nonce"]
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode(), expected.nonce.encode()
    ):
        raise BadIdToken("its nonce is of another login")
    audience = claims["aud"]
    others = [audience] if isinstance(audience, str) else list(audience)
    is_ours = claims.get("azp", expected.client_id) == expected.client_id
    if not is_ours or (len(others) > 1 and "azp" not in claims):
        raise BadIdToken("it is for another client")
    subject = claims["sub"]
    if not 0 < len(subject) <= _SUBJECT_LENGTH_MAX or not subject.isprintable():
        raise BadIdToken("its subject is empty or too long")
    return Identity(expected.issuer, subject, claims, _moment(claims.get("auth_time"), expected))


def _moment(value: Any, expected: Expected) -> datetime | None:
    """When somebody proved who they are; one that lies ahead says nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    now = expected.now.timestamp()
    return datetime.fromtimestamp(min(value, now), UTC) if 0 < value <= now + 60 else None
