"""An issuer of the tests' own, for what a real one would never sign."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID, CLIENT_SECRET = "holdfast", "a secret of the issuer"


def make_rsa_key(kid: str | None, bits: int = 2048) -> RSAKey:
    """A key to sign with."""
    return RSAKey.generate_key(bits, {} if kid is None else {"kid": kid})


@dataclass
class SigningIssuer:
    """What it says can be changed while it runs; what it was asked is kept."""

    url: str = ""
    key: RSAKey = field(default_factory=lambda: make_rsa_key("first"))
    published: list[Any] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    #: In place of the token that it would make from nonce and claims.
    make_token: Callable[[str], str] | None = None
    userinfo: dict[str, Any] | None = None
    nonce: str = ""
    challenge: str = ""
    asked: list[str] = field(default_factory=list)
    codes: set[str] = field(default_factory=set)
    answer: tuple[int, dict[str, str], bytes] | None = None

    def __post_init__(self) -> None:
        self.published = [self.key.as_dict(private=False)]

    def take_authorization(self, location: str) -> str:
        """A person is sent here and logs in: the state to come back with."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        self.nonce, self.challenge = query["nonce"], query["code_challenge"]
        return query["state"]

    def token(self, **changed: Any) -> str:
        """The ID token of the login that was taken last."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "auth_time": now,
            "nonce": self.nonce,
            "groups": ["admins"],
            **self.claims,
            **changed,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, kept, self.key)

    def exchange(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """What the token endpoint says."""
        told = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        proven = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        is_client = told == f"{CLIENT_ID}:{CLIENT_SECRET}".replace(" ", "%20") or told == (
            f"{CLIENT_ID}:{CLIENT_SECRET}"
        )
        if not is_client or proven != self.challenge or form["code"] in self.codes:
            return 400, {"error": "invalid_grant"}
        self.codes.add(form["code"])
        token = self.make_token(self.nonce) if self.make_token else self.token()
        return 200, {"access_token": "at", "token_type": "Bearer", "id_token": token}


class _Handler(BaseHTTPRequestHandler):
    issuer: SigningIssuer

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self._answer({name: values[0] for name, values in parse_qs(body).items()})

    def _answer(self, form: dict[str, str] | None) -> None:
        path = urlsplit(self.path).path
        self.issuer.asked.append(path)
        if self.issuer.answer is not None:
            self._send(*self.issuer.answer)
            return
        status, told = self._of(path, form)
        self._send(status, {"content-type": "application/json"}, json.dumps(told).encode())

    def _of(self, path: str, form: dict[str, str] | None) -> tuple[int, Any]:
        issuer = self.issuer
        if path == "/token" and form is not None:
            return issuer.exchange(form, self.headers.get("authorization", ""))
        if path == "/userinfo":
            return 200, issuer.userinfo
        if path == "/jwks":
            return 200, {"keys": issuer.published}
        if path == "/.well-known/openid-configuration":
            names = {
                "authorization_endpoint": "authorize",
                "token_endpoint": "token",
                "jwks_uri": "jwks",
                "userinfo_endpoint": "userinfo",
            }
            told = {name: f"{issuer.url}/{path}" for name, path in names.items()}
            return 200, {"issuer": issuer.url, **told, **issuer.document}
        return 404, {}

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked had enough

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing."""


@contextmanager
def running_issuer() -> Iterator[SigningIssuer]:
    """The issuer on a port of its own."""
    issuer = SigningIssuer()
    handler = type("Handler", (_Handler,), {"issuer": issuer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
