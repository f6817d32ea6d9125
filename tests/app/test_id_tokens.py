"""ID tokens: one good one, and everything that is not to be believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from app.oidc import tokens
from app.oidc.identity import BadIdToken, Expected, UnknownKey
from app.oidc.tokens import check_id_token, read_keys
from tests.servers.signing_issuer import make_rsa_key

NOW = datetime(2026, 11, 30, 9, 0, tzinfo=UTC)
ISSUER, CLIENT, NONCE = "https://login.example.com", "holdfast", "the nonce of this login"
EXPECTED = Expected(ISSUER, CLIENT, NONCE, NOW)
RSA, OTHER = make_rsa_key("rsa"), make_rsa_key("rsa")
with warnings.catch_warnings(action="ignore"):
    WEAK = make_rsa_key("weak", 1024)
EC = ECKey.generate_key("P-256", {"kid": "ec"})
P384 = ECKey.generate_key("P-384", {"kid": "p384"})
JWKS = {"keys": [key.as_dict(private=False) for key in (RSA, EC)]}
KEYS = read_keys(JWKS)
PEM = RSA.as_pem(private=False)


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says, with changes; None takes a claim out."""
    now = int(NOW.timestamp())
    told = {"iss": ISSUER, "aud": CLIENT, "sub": "ada", "iat": now, "exp": now + 300}
    told |= {"nonce": NONCE, "auth_time": now - 10, **changed}
    return {name: value for name, value in told.items() if value is not None}


def signed(header: dict[str, Any] | None = None, key: Any = RSA, **changed: Any) -> str:
    """A token that is signed as its header says."""
    head = {"alg": "RS256", "kid": "rsa", **(header or {})}
    head = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(head, claims(**changed), key, algorithms=[str(head["alg"])])


def part(value: Any) -> str:
    """A part of a token, by hand."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: Any, signature: bytes = b"", body: Any = None) -> str:
    """A token that no library would make."""
    return f"{part(header)}.{part(body if body is not None else claims())}.{part(signature)}"


def hmac_with(secret: bytes, algorithm: str = "HS256", **header: Any) -> str:
    """The classic: the public key as an HMAC's secret."""
    head, body = part({"alg": algorithm, "kid": "rsa", **header}), part(claims())
    kind = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    mac = hmac.new(secret, f"{head}.{body}".encode(), kind).digest()
    return f"{head}.{body}.{part(mac)}"


def tampered(place: int, change: Callable[[str], str]) -> str:
    """A good token with one part changed."""
    parts = signed().split(".")
    parts[place] = change(parts[place])
    return ".".join(parts)


def _seconds(delta: int) -> int:
    return int(NOW.timestamp()) + delta


def _with_header(**header: Any) -> str:
    """Really signed, with a header that the library would refuse to write."""
    head = part({"alg": "RS256", "kid": "rsa", **header})
    body = part(claims())
    raw = f"{head}.{body}".encode()
    signature = RSA.private_key.sign(raw, padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr]
    return f"{head}.{body}.{part(signature)}"


BAD: dict[str, str] = {
    # The algorithm.
    "none": forged({"alg": "none"}),
    "None": forged({"alg": "None"}),
    "nOnE with a kid": forged({"alg": "nOnE", "kid": "rsa"}),
    "none with a signature": forged({"alg": "none", "kid": "rsa"}, b"x"),
    "no algorithm": forged({"kid": "rsa"}),
    "an empty algorithm": forged({"alg": "", "kid": "rsa"}),
    "an algorithm that is a list": forged({"alg": ["RS256"], "kid": "rsa"}),
    "an algorithm that is a number": forged({"alg": 1, "kid": "rsa"}),
    "an algorithm in lower case": _with_header(alg="rs256"),
    "HS256 with the public key": hmac_with(PEM),
    "HS384 with the public key": hmac_with(PEM, "HS384"),
    "HS512 with the public key": hmac_with(PEM, "HS512"),
    "HS256 with the public key without its last line": hmac_with(PEM.strip()),
    "HS256 with the JWK": hmac_with(json.dumps(JWKS["keys"][0]).encode()),
    "HS256 with nothing": hmac_with(b""),
    "HS256 with the client's id": hmac_with(CLIENT.encode()),
    "HS256 without a kid": hmac_with(PEM, kid=None),
    "RS512": signed({"alg": "RS512"}),
    "RS384": signed({"alg": "RS384"}),
    "PS512": signed({"alg": "PS512"}),
    "ES384": signed({"alg": "ES384", "kid": "p384"}, P384),
    "ES256 by name, signed with RSA": tampered(0, lambda _: part({"alg": "ES256", "kid": "rsa"})),
    "RS256 by name, with the EC key": tampered(0, lambda _: part({"alg": "RS256", "kid": "ec"})),
    "PS256 by name, signed as RS256": tampered(0, lambda _: part({"alg": "PS256", "kid": "rsa"})),
    # The key.
    "another key of the same kid": signed(key=OTHER),
    "a kid that is not published": signed({"kid": "nobody"}),
    "an empty kid": _with_header(kid=""),
    "a kid that is a path": _with_header(kid="../../../../dev/null"),
    "a kid that is a query": _with_header(kid="rsa' OR '1'='1"),
    "a kid that is a command": _with_header(kid="rsa|cat /etc/passwd"),
    "a kid with a NUL": _with_header(kid="rsa\0"),
    "a kid that is a list": _with_header(kid=["rsa"]),
    "a kid that is a number": _with_header(kid=0),
    "a kid that is null": _with_header(kid=None),
    "a kid that is true": _with_header(kid=True),
    "a kid in upper case": _with_header(kid="RSA"),
    "a kid of 60,000 letters": _with_header(kid="k" * 60_000),
    "a key that it brings along": _with_header(jwk=RSA.as_dict(private=False)),
    "another key that it brings along": signed(
        {"jwk": OTHER.as_dict(private=False), "kid": "rsa"}, OTHER
    ),
    "an address of keys": _with_header(jku="https://evil.example/keys"),
    "an address of certificates": _with_header(x5u="https://evil.example/chain"),
    "a chain of certificates": _with_header(x5c=["MIIB"]),
    "a weak key": signed({"kid": "weak"}, WEAK),
    # The header.
    "a critical header": _with_header(crit=["exp"], exp=1),
    "a critical header that nobody knows": _with_header(crit=["x"], x=1),
    "an unencoded body": _with_header(b64=False, crit=["b64"]),
    "a compressed body": _with_header(zip="DEF"),
    "an access token's type": _with_header(typ="at+jwt"),
    "a logout token's type": _with_header(typ="logout+jwt"),
    "a header that is a list": forged([]),
    "a header that is no JSON": forged(b"{"),
    "a header that is deep": forged(b"[" * 30_000),
    # The form.
    "nothing": "",
    "one dot": "a.b",
    "three dots": signed() + ".x",
    "five parts, as if encrypted": signed() + ".x.y",
    "no signature": signed().rsplit(".", 1)[0] + ".",
    "a signature of another token": ".".join(
        [*signed(sub="eve").split(".")[:2], signed().split(".")[2]]
    ),
    "a body that was changed": tampered(1, lambda _: part(claims(sub="eve"))),
    "a signature that was cut": tampered(2, lambda text: text[:-8]),
    "a signature that was turned": tampered(2, lambda text: text[::-1]),
    "a body that is a list": jwt.encode({"alg": "RS256", "kid": "rsa"}, {}, RSA).split(".")[0]
    + f".{part([])}.x",
    "letters beyond ASCII": signed() + "é",
    "spaces around it": f" {signed()} ",
    "70 KiB": signed(padding="x" * 70_000),
    # Who it is from, and for whom.
    "another issuer": signed(iss="https://evil.example"),
    "the issuer with a slash": signed(iss=f"{ISSUER}/"),
    "the issuer in upper case": signed(iss=ISSUER.upper()),
    "the issuer with something behind it": signed(iss=f"{ISSUER}.evil.example"),
    "no issuer": signed(iss=None),
    "issuers": signed(iss=[ISSUER]),
    "another audience": signed(aud="another"),
    "the audience with something behind it": signed(aud=f"{CLIENT}2"),
    "no audience": signed(aud=None),
    "an empty audience": signed(aud=[]),
    "several audiences without azp": signed(aud=[CLIENT, "another"]),
    "several audiences for another": signed(aud=[CLIENT, "another"], azp="another"),
    "one audience and another azp": signed(azp="another"),
    "an audience that is an object": signed(aud={"value": CLIENT}),
    # Who it is of.
    "no subject": signed(sub=None),
    "an empty subject": signed(sub=""),
    "a subject that is a number": signed(sub=1),
    "a subject of 256 letters": signed(sub="s" * 256),
    "a subject with a line break": signed(sub="ada\nroot"),
    "a subject with a NUL": signed(sub="ada\0"),
    # When.
    "over": signed(exp=_seconds(-61)),
    "over long ago": signed(exp=1),
    "no end": signed(exp=None),
    "an end that is a text": signed(exp="never"),
    "an end that is true": signed(exp=True),
    "not yet": signed(nbf=_seconds(3_600)),
    "made in the future": signed(iat=_seconds(3_600)),
    "no time of making": signed(iat=None),
    # Of which login.
    "no nonce": signed(nonce=None),
    "another nonce": signed(nonce="of another login"),
    "an empty nonce": signed(nonce=""),
    "nonces": signed(nonce=[NONCE]),
    "the nonce with something behind it": signed(nonce=f"{NONCE} "),
    "a nonce that is a number": signed(nonce=1),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_to_be_believed(name: str) -> None:
    with pytest.raises(BadIdToken):
        check_id_token(BAD[name], KEYS, EXPECTED)


def test_the_corpus_is_large() -> None:
    assert len(BAD) >= 60
    assert len(set(BAD.values())) == len(BAD)


def test_the_good_ones_are_believed() -> None:
    good = [
        signed(),
        signed({"alg": "PS256"}),
        signed({"alg": "ES256", "kid": "ec"}, EC),
        signed(aud=[CLIENT]),
        signed(aud=[CLIENT, "another"], azp=CLIENT),
        signed(exp=_seconds(-59)),
        signed({"typ": None}),
    ]
    for token in good:
        assert check_id_token(token, KEYS, EXPECTED).subject == "ada"
    told = check_id_token(signed(), KEYS, EXPECTED)
    assert told.authenticated_at == NOW - timedelta(seconds=10)
    late = check_id_token(signed(auth_time=_seconds(7_200)), KEYS, EXPECTED)
    assert late.authenticated_at is None
    only_rsa = read_keys({"keys": [RSA.as_dict(private=False)]})
    assert check_id_token(signed({"kid": None}), only_rsa, EXPECTED).subject == "ada"


def test_a_key_that_is_not_known_is_told_apart() -> None:
    with pytest.raises(UnknownKey):
        check_id_token(signed({"kid": "new"}), KEYS, EXPECTED)
    with pytest.raises(BadIdToken) as told:
        check_id_token(forged({"alg": "none", "kid": "new"}), KEYS, EXPECTED)
    assert not isinstance(told.value, UnknownKey)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_of_a_jwks_only_what_can_sign_for_us_is_read() -> None:
    other = [
        OctKey.generate_key(256).as_dict(),
        WEAK.as_dict(private=False),
        P384.as_dict(private=False),
        {**RSA.as_dict(private=False), "use": "enc"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "unknown"},
        "no key",
        None,
    ]
    assert read_keys({"keys": other}) == []
    assert [key.kid for key in read_keys({"keys": [*other, *JWKS["keys"]]})] == ["rsa", "ec"]
    stated = read_keys({"keys": [{**RSA.as_dict(private=False), "alg": "PS256"}]})
    with pytest.raises(BadIdToken):
        check_id_token(signed(), stated, EXPECTED)
    unreadable: list[Any] = [None, [], {}, {"keys": None}, {"keys": "x"}]
    for wrong in unreadable:
        with pytest.raises(BadIdToken):
            read_keys(wrong)


def test_the_corpus_sees_a_check_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the algorithm of the token's own choice and no claim looked at, some would pass."""
    monkeypatch.setattr("app.oidc.tokens.ALGORITHMS", ("RS256", "PS256", "ES256", "RS512"))
    monkeypatch.setitem(tokens._KEY_TYPES, "RS512", "RSA")
    monkeypatch.setattr("joserfc.jwt.JWTClaimsRegistry.validate", lambda *_: None)
    passed = []
    for name, token in BAD.items():
        try:
            check_id_token(token, KEYS, EXPECTED)
        except (BadIdToken, KeyError, TypeError, AttributeError):
            continue
        passed.append(name)
    assert {"RS512", "another issuer", "another audience", "over"} <= set(passed)
