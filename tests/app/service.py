"""The application over a real database, called through ASGI."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from sqlalchemy import URL, insert

from app.api import make_app
from app.certificates.authority import make_root
from app.database.sessions import Database
from app.http.unit import Tools
from app.identity.tokens import make_token
from app.keys.local import LocalKeys
from app.kit.clock import Clock, SystemClock
from app.kit.ids import new_uuid
from app.kit.sealing import Sealer
from app.models import ProviderKey
from app.oidc.documents import Issuers

SECRET = bytes(range(32))
PUBLIC_URL = "https://holdfast"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Caller:
    """Somebody with a token, or nobody."""

    http: httpx2.AsyncClient
    token: str | None

    async def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """A request with the caller's token."""
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        return await self.http.request(method, path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.call("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx2.Response:
        return await self.call("POST", path, json=json, **options)


@dataclass(frozen=True)
class Service:
    """The application and its database."""

    app: FastAPI
    http: httpx2.AsyncClient
    tools: Tools
    url: URL
    provider: Caller

    @property
    def nobody(self) -> Caller:
        """Without a token."""
        return Caller(self.http, None)

    def browser(self) -> httpx2.AsyncClient:
        """A browser: it keeps cookies, and sends what is secure over TLS alone."""
        transport = httpx2.ASGITransport(app=self.app)
        return httpx2.AsyncClient(transport=transport, base_url=PUBLIC_URL)

    def caller(self, token: str) -> Caller:
        """With this token."""
        return Caller(self.http, token)

    async def make_tenant(
        self, name: str | None = None, plan: dict[str, Any] | None = None
    ) -> Caller:
        """A new tenant's first administrator."""
        wanted = {"name": name or f"tenant {next(_numbers)}", "plan": plan or {}}
        answer = await self.provider.post("/v1/provider/tenants", wanted)
        assert answer.status_code == 201, answer.text
        return self.caller(answer.json()["token"])

    async def make_caller(
        self, administrator: Caller, role: str, scope: str | None = None
    ) -> Caller:
        """Somebody else of a tenant, with this role over the tenant, a site or a group."""
        wanted = {"name": f"key {next(_numbers)}", "role": role, "scope": scope}
        answer = await administrator.post("/v1/api-keys", wanted)
        assert answer.status_code == 201, answer.text
        return self.caller(answer.json()["token"])


@asynccontextmanager
async def running_service(
    url: URL, clock: Clock | None = None, issuers: Issuers | None = None
) -> AsyncIterator[Service]:
    """The application over this database, with a key of the provider's."""
    clock = clock or SystemClock()
    root = make_root(clock.now())
    folder = tempfile.TemporaryDirectory(prefix="keys-")
    keys = LocalKeys(Path(folder.name), root.certificate, clock)
    tools = Tools(
        Database(url),
        Sealer(SECRET),
        clock,
        root,
        keys,
        public_url=PUBLIC_URL,
        issuers=issuers or Issuers(),
    )
    token = make_token(None, new_uuid(tools.clock.now()))
    async with tools.database.provider() as session:
        await session.orm.execute(
            insert(ProviderKey).values(
                id=token.id,
                name="tests",
                fingerprint=token.fingerprint(tools.sealer),
                created_at=tools.clock.now(),
            )
        )
        await session.commit()
    app = make_app(tools)
    transport = httpx2.ASGITransport(app=app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://holdfast") as http:
            yield Service(app, http, tools, url, Caller(http, token.text))
    finally:
        await tools.database.close()
        keys.close()
        folder.cleanup()
