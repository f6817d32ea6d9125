"""The API's routes for machines, in this process: who joins by a token, who renews by a key."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from app.certificates.authority import key_of_request, pem_of, sign_host
from host_agent.control.enrol import RENEWAL_CONTEXT
from host_agent.wire.names import agent_san, parse_san
from host_agent.wire.signing import is_signed_by
from tests.agent.deployment import Deployment, TenantSide


class Api:
    """The API's routes for machines, in a thread: join tokens and renewals of real certificates."""

    def __init__(self, deployment: Deployment, control_port: int) -> None:
        self.deployment = deployment
        self.control_port = control_port
        self.tokens: dict[str, tuple[TenantSide, str]] = {}
        self.renewals = 0
        #: How long after now new certificates are to be renewed, seconds.
        self.renew_after = 43_200.0
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                root = deployment.root
                now = datetime.now(UTC).isoformat()
                told = {"certificate": root.certificate_pem, "time": now}
                self._say(200, told)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/v1/enrolments":
                    token = self.headers["authorization"].removeprefix("Bearer ")
                    found = api.tokens.pop(token, None)
                    known = None if found is None else (*found, body["certificate_request"])
                else:
                    known = api.renewal(body)
                if known is None:
                    self._say(401, {"title": "Not authenticated"})
                else:
                    self._say(201, api.certificate(*known))

            def _say(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing to say."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(deployment.server(["localhost"], deployment.folder / "api.pem"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def token(self, tenant: TenantSide, host: str) -> str:
        """A join token for a host of the tenant."""
        number = f"{len(self.tokens):026d}"
        token = f"hfj_{tenant.id[4:]}_{number}_{'0' * 64}_{self.deployment.root.fingerprint}"
        self.tokens[token] = (tenant, host)
        return token

    def renewal(self, body: dict[str, str]) -> tuple[TenantSide, str, str] | None:
        """Who renews; None unless the old key signed."""
        leaf = x509.load_pem_x509_certificate(body["certificate"].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        tenant, host = parse_san(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
        signed = RENEWAL_CONTEXT + body["certificate_request"].encode()
        if not is_signed_by(leaf.public_key(), base64.b64decode(body["signature"]), signed):
            return None
        self.renewals += 1
        return self.deployment.tenants[tenant], host, body["certificate_request"]

    def certificate(self, tenant: TenantSide, host: str, request: str) -> dict[str, Any]:
        """What a host gets."""
        now, uri = datetime.now(UTC), agent_san(tenant.id, host)
        made = sign_host(tenant.authority, key_of_request(request), uri, now)
        return {
            "tenant_id": tenant.id,
            "host_id": host,
            "uri": uri,
            "certificate": pem_of(made) + tenant.authority.certificate_pem,
            "root_certificate": self.deployment.root.certificate_pem,
            "control_doors": [f"localhost:{self.control_port}"],
            "expires_at": made.not_valid_after_utc.isoformat(),
            "renew_at": (now + timedelta(seconds=self.renew_after)).isoformat(),
        }
