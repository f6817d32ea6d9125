"""A tenant with an issuer that says whatever a test wants, and logins through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from app.oidc.attempts import challenge_of
from app.oidc.documents import Issuers
from app.outbound.policy import OutboundPolicy
from tests.app.service import PUBLIC_URL, Caller, Service, running_service
from tests.app.test_users import SetClock
from tests.servers.postgres import Cluster
from tests.servers.signing_issuer import (
    CLIENT_ID,
    CLIENT_SECRET,
    SigningIssuer,
    running_issuer,
)

VERIFIER, STATE = "v" * 43, "s" * 32


@dataclass
class Monotonic:
    """Seconds that a test adds to."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Acme:
    """A tenant with an issuer, and a local administrator beside it."""

    service: Service
    issuer: SigningIssuer
    clock: SetClock
    monotonic: Monotonic
    administrator: Caller
    tenant: str
    wanted: dict[str, Any] = field(default_factory=dict)

    @property
    def login(self) -> str:
        """Where a browser begins."""
        return f"/v1/login/{self.tenant}"

    async def configure(self, **changed: Any) -> httpx2.Response:
        """Change what is configured."""
        self.wanted = {**self.wanted, **changed}
        return await self.administrator.call(
            "PUT", "/v1/issuer", json=self.wanted, headers={"if-match": "*"}
        )

    async def begin(self, browser: httpx2.AsyncClient, **query: Any) -> str:
        """To the issuer: the state to come back with."""
        answer = await browser.get(self.login, params=query)
        assert answer.status_code == 303, answer.text
        location = answer.headers["location"]
        assert location.startswith(f"{self.issuer.url}/authorize?")
        back = parse_qs(urlsplit(location).query)["redirect_uri"][0]
        assert back == f"{PUBLIC_URL}{self.login}/callback"
        return self.issuer.take_authorization(location)

    async def come_back(
        self, browser: httpx2.AsyncClient, state: str, code: str = "c0de", **more: str
    ) -> httpx2.Response:
        """From the issuer."""
        return await browser.get(
            f"{self.login}/callback", params={"code": code, "state": state, **more}
        )

    async def enter(self, code: str = "c0de") -> httpx2.Response:
        """A whole login with a browser."""
        async with self.service.browser() as browser:
            return await self.come_back(browser, await self.begin(browser), code)

    async def enter_command(self, code: str = "c0de") -> Caller:
        """A whole login of a command."""
        async with self.service.browser() as browser:
            asked = {"port": 4711, "challenge": challenge_of(VERIFIER), "state": STATE}
            back = await self.come_back(browser, await self.begin(browser, **asked), code)
        assert back.status_code == 303, back.text
        answer = await self.redeem(handed(back))
        assert answer.status_code == 200, answer.text
        return self.service.caller(answer.json()["token"])

    async def redeem(self, code: str, **changed: str) -> httpx2.Response:
        """The command, with its secret."""
        body = {"tenant": self.tenant, "code": code, "verifier": VERIFIER, **changed}
        return await self.service.nobody.post("/v1/login:redeem", body)

    async def denials(self) -> list[str]:
        """Why people were not let in, by the audit log."""
        answer = await self.administrator.get("/v1/audit", params={"limit": 200})
        entries = answer.json()["items"]
        found = [one for one in entries if (one["action"], one["outcome"]) == LOGIN_DENIED]
        return [one["details"].get("reason", "") for one in found]


LOGIN_DENIED = ("users.login", "denied")


def handed(answer: httpx2.Response) -> str:
    """The code in the redirect to the command."""
    url = urlsplit(answer.headers["location"])
    assert (url.scheme, url.netloc) == ("http", "127.0.0.1:4711")
    query = parse_qs(url.query)
    assert query["state"] == [STATE]
    return query["code"][0]


async def make_acme(service: Service, issuer: SigningIssuer, clock: SetClock) -> Acme:
    administrator = await service.make_tenant()
    tenant = (await administrator.get("/v1/tenant")).json()["id"]
    acme = Acme(service, issuer, clock, Monotonic(), administrator, tenant)
    configured = await acme.configure(
        url=issuer.url,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        mappings=[{"group": "admins", "role": "administrator"}],
    )
    assert configured.status_code == 200, configured.text
    return acme


@pytest.fixture
async def acme(cluster: Cluster) -> AsyncIterator[Acme]:
    clock, monotonic = SetClock(), Monotonic()
    issuers = Issuers(OutboundPolicy(permits_loopback=True), monotonic=monotonic)
    with cluster.database() as url, running_issuer() as issuer:
        async with running_service(url, clock, issuers) as service:
            made = await make_acme(service, issuer, clock)
            made.monotonic = monotonic
            yield made


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    """What whoever is refused sees."""
    body = answer.json()
    body.pop("request_id")
    return answer.status_code, repr(body)
