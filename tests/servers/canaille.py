"""A real OpenID Connect issuer, Canaille, as a process of its own; and a person with a browser."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx2

CLIENT_ID, CLIENT_SECRET, PASSWORD = "holdfast", "a secret of canaille", "correct horse battery"
ADMINISTRATORS, OPERATORS = "dr-administrators", "dr-operators"
#: Login name to group.
PEOPLE = {"ada": ADMINISTRATORS, "ben": OPERATORS, "eve": None}


@dataclass(frozen=True)
class Canaille:
    """A running one."""

    url: str

    def log_in(self, browser: httpx2.Client, location: str, name: str) -> str:
        """A person logs in where a browser was sent, and agrees: where it is sent back to."""
        at_login = browser.get(location).headers["location"]
        asked = browser.post(urljoin(location, at_login), data={"login": name})
        url = urljoin(location, asked.headers["location"])
        entered = browser.post(url, data={"password": PASSWORD})
        back = urljoin(location, entered.headers["location"])
        agreed = browser.post(back, data={"answer": "accept"})
        assert agreed.status_code in (302, 303), agreed.text[:500]
        return str(agreed.headers["location"])


def browse(name: str, root_file: str, url: str) -> None:
    """The browser that a command opens: in through the issuer, and back to the command."""
    context = ssl.create_default_context(cafile=root_file)
    with httpx2.Client(verify=context, trust_env=False) as browser:
        location = str(browser.get(url).headers["location"])
        back = browser.get(Canaille(location).log_in(browser, location, name))
        assert back.status_code == 303, back.text
        assert browser.get(str(back.headers["location"])).status_code == 200


@contextmanager
def running_canaille(redirect_uri: str) -> Iterator[Canaille]:
    """With one client, for this address, and three people."""
    environment = {**os.environ, "AUTHLIB_INSECURE_TRANSPORT": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.canaille", "serve", redirect_uri],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "the issuer did not start"
        yield Canaille(json.loads(line)["url"])
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def _configuration(port: int) -> dict[str, Any]:
    from joserfc.jwk import JWKRegistry

    key = JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    return {
        "ENV_FILE": None,
        "SECRET_KEY": str(uuid.uuid4()),
        "TESTING": True,
        "WTF_CSRF_ENABLED": False,
        "PREFERRED_URL_SCHEME": "http",
        "SERVER_NAME": f"localhost:{port}",
        "CANAILLE": {
            "DATABASE": "memory",
            "JAVASCRIPT": False,
            "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc"]}},
            "LOGGING": {"version": 1},
        },
        "CANAILLE_OIDC": {"ACTIVE_JWKS": [key.as_dict(private=True)]},
    }


def _fill(server: Any, redirect_uri: str) -> None:
    models, backend = server.models, server.backend
    with server.app.app_context():
        client = models.Client(
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
            client_name="Holdfast",
            redirect_uris=[redirect_uri],
            grant_types=["authorization_code"],
            response_types=["code"],
            scope=["openid", "profile", "groups"],
            token_endpoint_auth_method="client_secret_basic",
            id_token_signed_response_alg="RS256",
        )
        backend.save(client)
        backend.update(client, audience=[client])
        backend.save(client)
        groups: dict[str, list[Any]] = {}
        for name, group in PEOPLE.items():
            user = models.User(
                user_name=name,
                formatted_name=name.title(),
                family_name=name.title(),
                emails=[f"{name}@example.com"],
                password=PASSWORD,
            )
            backend.save(user)
            if group is not None:
                groups.setdefault(group, []).append(user)
        for group, members in groups.items():
            backend.save(models.Group(display_name=group, members=members))


def serve(redirect_uri: str) -> None:
    """The process: says where it listens, then serves until it is ended."""
    import portpicker
    from canaille import create_app
    from canaille.backends import Backend
    from pytest_iam import Server

    port = portpicker.pick_unused_port()
    app = create_app(config=_configuration(port))
    server = Server(app, port, Backend.instance)
    _fill(server, redirect_uri)
    print(json.dumps({"url": f"http://localhost:{port}"}), flush=True)
    server.httpd.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "browse":
        browse(*sys.argv[2:])
    else:
        serve(sys.argv[2])
