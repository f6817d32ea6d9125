"""How many requests are let through: by credential, by tenant, and nobody for somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import httpx2
import pytest

from app.api import make_app
from app.http.admission import Admission, Rate
from app.kit.problems import Problem
from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio
_A, _B = UUID(int=1), UUID(int=2)


def refused(admission: Admission, bearer: str, tenant: UUID | None) -> bool:
    try:
        admission.check(bearer)
        admission.admit(bearer, tenant)
    except Problem as problem:
        return problem.code == "too_many_requests"
    return False


def test_a_credential_has_its_rate_and_a_burst() -> None:
    at = [0.0]
    admission = Admission(Rate(10, 20), Rate(1000, 1000), lambda: at[0])
    assert sum(not refused(admission, "one", _A) for _ in range(100)) == 20
    assert not refused(admission, "other", _A)
    at[0] = 1.0
    assert sum(not refused(admission, "one", _A) for _ in range(100)) == 10


def test_a_tenant_s_credentials_share_and_another_tenant_does_not_notice() -> None:
    admission = Admission(Rate(10, 20), Rate(10, 50), lambda: 0.0)
    let = [not refused(admission, f"key {n % 10}", _A) for n in range(100)]
    assert sum(let) == 50
    assert not refused(admission, "another's", _B)


def test_who_did_not_come_in_uses_up_nothing() -> None:
    admission = Admission(Rate(1, 1), Rate(1, 1), lambda: 0.0)
    for _ in range(50):
        admission.check("guessed")
    assert not refused(admission, "guessed", _A)


@pytest.fixture
async def paced(service: Service) -> AsyncIterator[Service]:
    """The application with five requests a credential, and ten a tenant."""
    tools = replace(service.tools, admission=Admission(Rate(0.001, 5), Rate(0.001, 10)))
    app = make_app(tools)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://holdfast") as http:
        provider = Caller(http, service.provider.token)
        yield replace(service, app=app, http=http, tools=tools, provider=provider)


async def test_a_flood_is_refused_with_a_time_to_wait(service: Service, paced: Service) -> None:
    flooding, other = await service.make_tenant(), await service.make_tenant()
    caller = paced.caller(flooding.token or "")
    answers = [await caller.get("/v1/sites") for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
    assert answers[-1].json()["code"] == "too_many_requests"
    assert answers[-1].json()["retryable"] is True
    assert answers[-1].headers["retry-after"]
    assert (await paced.caller(other.token or "").get("/v1/sites")).status_code == 200


async def test_a_hundred_repeats_at_once_have_one_effect(service: Service) -> None:
    """CP8: more of them than the database has connections for."""
    tenant = await service.make_tenant()
    wanted, headers = {"name": "once", "territory": "CH"}, {"idempotency-key": "once"}

    async def ask() -> httpx2.Response:
        return await tenant.post("/v1/sites", wanted, headers=headers)

    answers = await asyncio.gather(*(ask() for _ in range(100)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {201, 409, 503}, codes
    made = [answer.json() for answer in answers if answer.status_code == 201]
    assert len(made) >= 50
    assert len({one["id"] for one in made}) == 1
    refusals = {a.json()["code"] for a in answers if a.status_code != 201}
    assert refusals <= {"request_in_progress", "database_unavailable"}
    assert len((await tenant.get("/v1/sites")).json()["items"]) == 1
    events = (await tenant.get("/v1/events")).json()["items"]
    assert sum(event["kind"] == "sites.created" for event in events) == 1
