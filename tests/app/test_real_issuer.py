"""A real OpenID Connect issuer in a process of its own: people log in with their passwords."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pyotp
import pytest

from app.oidc.documents import Issuers
from app.outbound.policy import OutboundPolicy
from infra.demo.processes import free_port
from tests.app.service import PUBLIC_URL, Caller, Service, running_service
from tests.app.test_up import HOLDFAST, running, state_folder
from tests.servers.canaille import (
    ADMINISTRATORS,
    CLIENT_ID,
    CLIENT_SECRET,
    OPERATORS,
    Canaille,
    running_canaille,
)
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Organisation:
    """A tenant, and its issuer."""

    service: Service
    administrator: Caller
    tenant: str
    issuer: Canaille

    async def enter(self, name: str) -> tuple[httpx2.AsyncClient, httpx2.Response]:
        """Somebody logs in with a browser: the browser, and what it was shown last."""
        browser = self.service.browser()
        begun = await browser.get(f"/v1/login/{self.tenant}")
        assert begun.status_code == 303, begun.text
        back = await anyio.to_thread.run_sync(self._log_in, begun.headers["location"], name)
        return browser, await browser.get(back)

    def _log_in(self, location: str, name: str) -> str:
        with httpx2.Client(trust_env=False) as client:
            return self.issuer.log_in(client, location, name)


@pytest.fixture
async def organisation(cluster: Cluster) -> AsyncIterator[Organisation]:
    issuers = Issuers(OutboundPolicy(permits_loopback=True))
    with cluster.database() as url:
        async with running_service(url, issuers=issuers) as service:
            administrator = await service.make_tenant()
            tenant = (await administrator.get("/v1/tenant")).json()["id"]
            with running_canaille(f"{PUBLIC_URL}/v1/login/{tenant}/callback") as issuer:
                wanted = {
                    "url": issuer.url,
                    "client_id": CLIENT_ID,
                    "client_secret": CLIENT_SECRET,
                    "scopes": ["profile", "groups"],
                    "mappings": [
                        {"group": ADMINISTRATORS, "role": "administrator"},
                        {"group": OPERATORS, "role": "operator"},
                    ],
                }
                made = await administrator.call("PUT", "/v1/issuer", json=wanted)
                assert made.status_code == 200, made.text
                yield Organisation(service, administrator, tenant, issuer)


async def test_people_come_in_by_their_groups_and_not_twice_by_one_code(
    organisation: Organisation,
) -> None:
    ada, entered = await organisation.enter("ada")
    ben, _ = await organisation.enter("ben")
    assert entered.status_code == 200, entered.text
    assert "issuer.write" in (await ada.get("/v1/self")).json()["privileges"]
    assert "users.write" not in (await ben.get("/v1/self")).json()["privileges"]
    nobody, refused = await organisation.enter("eve")
    assert refused.status_code == 401
    again = await ben.get(str(entered.url))
    assert again.status_code == 401, "a callback that was used"
    users = (await organisation.administrator.get("/v1/users")).json()["items"]
    assert {user["display_name"] for user in users} == {"Ada", "Ben"}
    for browser in (ada, ben, nobody):
        await browser.aclose()


async def test_a_login_is_proof_for_what_needs_one(organisation: Organisation) -> None:
    ada, _ = await organisation.enter("ada")
    export = {
        "tenant_name": (await organisation.administrator.get("/v1/tenant")).json()["name"],
        "reason": "a test",
        "public_key": "CSotfFhqMTZCjFNN0pbfQWkbYQ8VmiMd5bdZ9oUxrVg=",
    }
    own = {"origin": PUBLIC_URL}
    answer = await ada.post("/v1/recovery-key:export", json=export, headers=own)
    assert answer.status_code == 200, answer.text
    await ada.aclose()


@dataclass
class Desk:
    """An administrator's terminal, and a browser that logs in as somebody."""

    home: Path
    started: dict[str, Any]

    def run(
        self, *words: str, typed: str = "", browses_as: str = "ada"
    ) -> subprocess.CompletedProcess[str]:
        browser = [sys.executable, "-m", "tests.servers.canaille", "browse", browses_as]
        browser += [self.started["root_certificate"], "%s"]
        environment = {
            **os.environ,
            "XDG_CONFIG_HOME": str(self.home),
            "BROWSER": shlex.join(browser).replace("'%s'", "%s"),
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [str(HOLDFAST), *words],
            input=typed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=ROOT,
        )
        assert "Traceback (most recent call last)" not in done.stdout
        return done

    def ask(self, *words: str, **options: Any) -> dict[str, Any]:
        """One command with --json that succeeds."""
        done = self.run(*words, "--json", **options)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def fails(self, *words: str, **options: Any) -> str:
        """The code of one that does not."""
        done = self.run(*words, "--json", **options)
        assert done.returncode == 1, done.stdout
        return str(json.loads(done.stdout)["error"])

    @property
    def service(self) -> tuple[str, ...]:
        """The words for a new profile."""
        return ("--api", self.started["url"], "--root-file", self.started["root_certificate"])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("HOLDFAST_OUTBOUND_PERMITS_LOOPBACK", "true")
    with state_folder() as folder, running(folder, free_port()) as (_, started):
        desk = Desk(tmp_path, {**started, "folder": str(folder)})
        token = Path(started["provider_key_file"]).read_text()
        desk.ask("profile", "add", "provider", *desk.service, "--token-file", "-", typed=token)
        yield desk


def _local(desk: Desk, profile: str, invitation: str) -> str:
    """Accept an invitation: the secret of the codes."""
    words = ("accept", profile, *desk.service, "--invitation-file", "-")
    return str(desk.ask(*words, typed=f"{invitation}\n{PASSWORD}\n")["code_secret"])


def _typed(secret: str) -> str:
    """Password and code; a code works once, so after this the next one is waited for."""
    return f"{PASSWORD}\n{pyotp.TOTP(secret).now()}\n"


def _next_step() -> None:
    time.sleep(30 - time.time() % 30 + 0.2)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_organisation_moves_to_its_issuer_by_commands(desk: Desk) -> None:
    made = desk.ask("tenant", "create", "Acme")
    words = ("profile", "add", "acme", *desk.service, "--token-file", "-")
    desk.ask(*words, typed=made["token"])
    callback = f"{desk.started['url']}/v1/login/{made['id']}/callback"
    with running_canaille(callback) as issuer:
        configured = desk.ask(
            "issuer", "set", issuer.url, "--client-id", CLIENT_ID, "--client-secret-file", "-",
            "--scope", "profile", "--scope", "groups",
            "--map", f"{ADMINISTRATORS}=administrator", "--map", f"{OPERATORS}=operator",
            typed=CLIENT_SECRET,
        )  # fmt: skip
        assert configured["redirect_uri"] == callback
        invited = desk.ask("user", "invite", "glass", "--role", "administrator")
        secret = _local(desk, "glass", invited["invitation"])
        glass = ("login", "glass", "--name", "glass")
        assert desk.fails(*glass, typed=f"wrong {_typed(secret)}") == "not_authenticated"
        desk.ask(*glass, typed=_typed(secret))
        enforce = ("issuer", "enforce", "--break-glass", invited["id"], "--yes")
        assert desk.fails(*enforce, "--profile", "glass") == "issuer_not_tested"
        desk.ask("login", "ada", *desk.service, "--tenant", made["id"])
        assert desk.ask(*enforce, "--profile", "ada")["is_enforced"] is True
        other = desk.ask("user", "invite", "cy", "--role", "viewer", "--profile", "acme")
        code = _local(desk, "cy", other["invitation"])
        assert desk.fails("login", "cy", "--name", "cy", typed=_typed(code)) == "not_authenticated"
        _next_step()
        desk.ask(*glass, typed=_typed(secret))
        desk.ask("logout", "--profile", "ada")
        assert desk.fails("site", "list", "--profile", "ada") == "not_authenticated"
        desk.ask("login", "ben", *desk.service, "--tenant", made["id"], browses_as="ben")
        assert desk.fails("issuer", "show", "--profile", "ben") == "privilege_missing"
        reset = ("admin", "reset", made["id"], "--directory", desk.started["folder"], "--yes")
        fresh = desk.ask(*reset)
        codes = _local(desk, "fresh", fresh["invitation"])
        desk.ask("login", "fresh", "--name", fresh["name"], typed=_typed(codes))
        shown = desk.ask("issuer", "show", "--profile", "fresh")
        assert shown["break_glass_user_id"] == fresh["user_id"]
        assert desk.ask("audit", "--verify", "--profile", "fresh")["is_intact"] is True
