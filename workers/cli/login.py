"""`holdfast login` and what belongs to it: people come in, locally or through their issuer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import secrets
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, urlencode, urlsplit

import typer

from host_agent.wire.errors import HoldfastError
from workers.cli.control import Json, ProfileName, show_one
from workers.cli.options import OutputOptions
from workers.cli.output import print_json

if TYPE_CHECKING:
    from app.client.profiles import Profile
    from app.users.schemas import LoginOutput

_WAIT_SECONDS_MAX = 300.0
_SECRET_BYTES = 32
_PAGE = b"<!doctype html><title>Holdfast</title><p>You may close this page."

ProfileArgument = Annotated[str, typer.Argument(help="The profile that keeps the session.")]
Api = Annotated[str | None, typer.Option(help="Of a new profile: https://NAME[:PORT]")]
RootFile = Annotated[
    Path | None, typer.Option(help="Of a new profile: the deployment's root certificate, PEM.")
]


class LoginFailed(HoldfastError):
    """Nobody came in."""

    code = "login_failed"


def _profile(name: str, api: str | None, root_file: Path | None) -> Profile:
    """A new profile without a token yet, or the one that is there."""
    from app.client.profiles import Profile, Profiles

    if api is None and root_file is None:
        return Profiles().get(name)
    if api is None or root_file is None:
        raise LoginFailed("A new profile needs both.", hint="Name --api and --root-file.")
    return Profile(name, api, root_file.read_text(), "")


def _tenant(profile: Profile, named: str | None) -> str:
    """The tenant that is named, or of the token that the profile has."""
    parts = profile.token.split("_")
    if named is not None:
        return named
    if len(parts) != 4:
        raise LoginFailed("It is not known which tenant is meant.", hint="Name it with --tenant.")
    return f"ten_{parts[1]}"


@dataclass(kw_only=True)
class LoginOptions(OutputOptions):
    """As whom, and where."""

    profile: ProfileArgument
    name: Annotated[
        str | None, typer.Option(help="Of a local account; without it through the issuer.")
    ] = None
    tenant: Annotated[str | None, typer.Option(help="ten_…, if the profile is new.")] = None
    api: Api = None
    root_file: RootFile = None


def login_command(options: LoginOptions) -> None:
    """Log in and keep the session in a profile: 12 hours, 30 minutes when idle.

    Without --name through the tenant's issuer, with a browser on this machine. With --name locally:
    password and code are asked for, or are the two lines of standard input.
    """
    from app.client.profiles import Profiles

    known = _profile(options.profile, options.api, options.root_file)
    tenant, name = _tenant(known, options.tenant), options.name
    entered = _through_issuer(known, tenant) if name is None else _locally(known, tenant, name)
    Profiles().add(replace(known, token=entered.token))
    if options.json:
        print_json({"profile": known.name, "expires_at": entered.expires_at.isoformat()})
    else:
        typer.echo(f"{known.name} is chosen, until {entered.expires_at:%Y-%m-%d %H:%M} UTC")


def _ask(question: str, *, hidden: bool) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    answer: str = typer.prompt(question, hide_input=hidden, err=True)
    return answer


def _locally(profile: Profile, tenant: str, name: str) -> LoginOutput:
    from app.client.people import People

    password, code = _ask("Password", hidden=True), _ask("Code", hidden=False)
    with People(profile) as client:
        return client.log_in(tenant, name, password, code)


def _through_issuer(profile: Profile, tenant: str) -> LoginOutput:
    """The browser comes back to a port of this machine, with a code that only we can redeem."""
    from app.client.people import People
    from app.oidc.schemas import RedeemInput

    verifier, state = (secrets.token_urlsafe(_SECRET_BYTES) for _ in range(2))
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    with _Waiting(state) as waiting:
        query = urlencode({"port": waiting.server_port, "challenge": challenge, "state": state})
        url = f"{profile.api}/v1/login/{tenant}?{query}"
        sys.stderr.write(f"Open this in a browser on this machine:\n  {url}\n")
        sys.stderr.flush()
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        code = waiting.wait()
    with People(profile) as client:
        return client.redeem_login(
            RedeemInput.model_construct(tenant=tenant, code=code, verifier=verifier)
        )


class _Waiting(http.server.HTTPServer):
    """A port of this machine at which the browser leaves a code."""

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state, self.code, self.timeout = state, "", 1.0

    def wait(self) -> str:
        """The code; LoginFailed after five minutes."""
        ends = time.monotonic() + _WAIT_SECONDS_MAX
        while not self.code:
            if time.monotonic() > ends:
                raise LoginFailed(
                    "Nobody logged in with the browser within five minutes.",
                    hint="Try again. A browser on another machine does not come back to this one.",
                )
            self.handle_request()
        return self.code


class _Handler(http.server.BaseHTTPRequestHandler):
    """Takes the one request that carries our own state."""

    timeout = 5
    server: _Waiting

    def do_GET(self) -> None:
        told = parse_qs(urlsplit(self.path).query)
        state = told.get("state", [""])[0]
        is_ours = hmac.compare_digest(state.encode(), self.server.state.encode())
        self.send_response(200 if is_ours else 404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        if is_ours:
            self.wfile.write(_PAGE)
            self.server.code = told.get("code", [""])[0]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: the path has the code in it."""


def accept_command(
    profile: ProfileArgument,
    invitation_file: Annotated[
        Path, typer.Option(help="The invitation; - reads it from standard input.")
    ],
    api: Api = None,
    root_file: RootFile = None,
    as_json: Json = False,
) -> None:
    """Accept an invitation: choose a password, get the authenticator's secret, shown this once."""
    from app.client.people import People
    from app.client.profiles import Profiles

    # The password may be the next line of the same input.
    is_typed = str(invitation_file) == "-"
    token = (sys.stdin.readline() if is_typed else invitation_file.read_text()).strip()
    known = replace(_profile(profile, api, root_file), token=token)
    password = _ask("Password, 12 characters or more", hidden=True)
    with People(known) as client:
        accepted = client.accept_invitation(password)
    # Kept for its tenant and service: `holdfast login` puts a session in its place.
    Profiles().add(known)
    show_one(accepted, as_json=as_json)


def logout_command(
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """End the session of a profile."""
    from app.client.people import People
    from app.client.profiles import Profiles

    known = Profiles().get(profile)
    with People(known) as client:
        client.log_out()
    if as_json:
        print_json({"profile": known.name, "logged_out": True})
    else:
        typer.echo(f"{known.name} is logged out")
