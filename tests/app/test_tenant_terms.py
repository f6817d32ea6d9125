"""What the provider changes of a tenant: its plan, whether it may come in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.kit.transitions import IllegalTransition
from app.models.tenants import TenantState
from app.tenants.state import TENANT, TenantEvent
from tests.app.placing import Json, id_of
from tests.app.service import Caller, Service, running_service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service(cluster: Cluster) -> AsyncIterator[Service]:
    with cluster.database() as url:
        async with running_service(url) as service:
            yield service


@pytest.fixture
async def acme(service: Service) -> Caller:
    return await service.make_tenant("Acme")


async def _shown(service: Service, tenant_id: str) -> tuple[Json, str]:
    answer = await service.provider.get(f"/v1/provider/tenants/{tenant_id}")
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers["etag"]


async def _put(service: Service, tenant_id: str, plan: Json, etag: str) -> Any:
    path = f"/v1/provider/tenants/{tenant_id}/plan"
    return await service.provider.call("PUT", path, json=plan, headers={"if-match": etag})


async def _move(service: Service, tenant_id: str, verb: str) -> Any:
    path = f"/v1/provider/tenants/{tenant_id}:{verb}"
    return await service.provider.post(path, {"reason": "an unpaid bill"})


async def _actions(caller: Caller, path: str) -> list[str]:
    return [one["action"] for one in (await caller.get(path)).json()["items"]]


async def test_a_lower_plan_refuses_what_is_new_and_keeps_what_is_there(
    service: Service, acme: Caller
) -> None:
    tenant_id = await id_of(acme)
    group = {"name": "first", "machines": []}
    assert (await acme.post("/v1/vpgs", group)).status_code == 201
    shown, etag = await _shown(service, tenant_id)
    answer = await _put(service, tenant_id, {**shown["plan"], "vpgs_max": 1}, etag)
    assert (answer.status_code, answer.json()["plan"]["vpgs_max"]) == (200, 1)
    refused = await acme.post("/v1/vpgs", {**group, "name": "second"})
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    kept = (await acme.get("/v1/vpgs")).json()["items"]
    assert [one["name"] for one in kept] == ["first"]
    assert (await acme.get("/v1/tenant")).json()["plan"]["vpgs_max"] == 1
    stale = await _put(service, tenant_id, shown["plan"], etag)
    assert (stale.status_code, stale.json()["code"]) == (412, "etag_mismatch")
    assert "plan.changed" in await _actions(acme, "/v1/audit")
    assert "plans.changed" in await _actions(service.provider, "/v1/provider/audit")


async def test_territories_are_the_policy_s(service: Service, acme: Caller) -> None:
    tenant_id = await id_of(acme)
    shown, etag = await _shown(service, tenant_id)
    answer = await _put(service, tenant_id, {**shown["plan"], "territories": ["CH"]}, etag)
    assert (answer.status_code, answer.json()["code"]) == (422, "settings_refused")
    assert await _shown(service, tenant_id) == (shown, etag)


async def test_nobody_of_a_suspended_tenant_gets_in_until_it_is_resumed(
    service: Service, acme: Caller
) -> None:
    other = await service.make_tenant("Globex")
    tenant_id = await id_of(acme)
    suspended = await _move(service, tenant_id, "suspend")
    assert (suspended.status_code, suspended.json()["state"]) == (200, "suspended")
    assert (await acme.get("/v1/vpgs")).status_code == 401
    assert (await other.get("/v1/vpgs")).status_code == 200
    again = await _move(service, tenant_id, "suspend")
    assert (again.status_code, again.json()["code"]) == (409, "illegal_transition")
    assert (await _move(service, tenant_id, "resume")).json()["state"] == "active"
    assert (await acme.get("/v1/vpgs")).status_code == 200
    assert {"tenants.suspended", "tenants.active"} <= set(await _actions(acme, "/v1/audit"))


async def test_a_tenant_that_is_not_there_is_not_found(service: Service) -> None:
    for wrong in ("ten_01hq3v5k8m9n2p4r6s7t8w9x0z", "site_x"):
        assert (await service.provider.get(f"/v1/provider/tenants/{wrong}")).status_code == 404
        assert (await _put(service, wrong, {}, "*")).status_code == 404
        assert (await _move(service, wrong, "suspend")).status_code == 404


async def test_no_tenant_reaches_these_routes(service: Service, acme: Caller) -> None:
    own = await id_of(acme)
    answer = await acme.post(f"/v1/provider/tenants/{own}:resume", {"reason": "I want to"})
    assert answer.status_code in (401, 403, 404)


def test_only_what_works_is_suspended_and_only_that_resumed() -> None:
    legal = {
        (TenantState.ACTIVE, TenantEvent.SUSPEND): TenantState.SUSPENDED,
        (TenantState.SUSPENDED, TenantEvent.RESUME): TenantState.ACTIVE,
    }
    for state in TenantState:
        for event in TenantEvent:
            if (state, event) in legal:
                assert TENANT.after(state, event) is legal[state, event]
            else:
                with pytest.raises(IllegalTransition):
                    TENANT.after(state, event)
