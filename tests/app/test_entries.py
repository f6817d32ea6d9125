"""The provider's staff enters a tenant: with a reason, for a while, only reading, in sight."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio


async def enter(service: Service, tenant: Caller, **wanted: Any) -> Response:
    tenant_id = (await tenant.get("/v1/tenant")).json()["id"]
    body = {"reason": "ticket 4711"} | wanted
    return await service.provider.post(f"/v1/provider/tenants/{tenant_id}:enter", body)


async def test_an_entry_reads_and_nothing_else(service: Service) -> None:
    tenant, other = await service.make_tenant(), await service.make_tenant()
    await tenant.post("/v1/sites", {"name": "own", "territory": "CH"})
    await other.post("/v1/sites", {"name": "foreign", "territory": "CH"})
    assert (await service.provider.get("/v1/sites")).status_code == 401
    staff = service.caller((await enter(service, tenant)).json()["token"])
    seen = (await staff.get("/v1/sites")).json()["items"]
    assert [site["name"] for site in seen] == ["own"]
    made = await staff.post("/v1/sites", {"name": "made", "territory": "CH"})
    assert (made.status_code, made.json()["code"]) == (403, "privilege_missing")
    for path in ("/v1/audit", "/v1/users", "/v1/api-keys"):
        assert (await staff.get(path)).status_code == 403
    assert (await staff.get("/v1/provider/tenants")).status_code == 401


async def test_the_tenant_sees_an_entry_and_ends_it(service: Service) -> None:
    tenant = await service.make_tenant()
    made = (await enter(service, tenant)).json()
    staff = service.caller(made["token"])
    listed = (await tenant.get("/v1/provider-entries")).json()["items"]
    assert [(entry["id"], entry["reason"]) for entry in listed] == [(made["id"], "ticket 4711")]
    events = (await tenant.get("/v1/events", params={"limit": 200})).json()["items"]
    told = [event for event in events if event["kind"] == "provider_entries.begun"]
    assert told[0]["data"]["reason"] == "ticket 4711"
    assert told[0]["actor"] == made["by"]
    own = f"/v1/provider-entries/{made['id']}:end"
    assert (await staff.post(own)).status_code == 403
    assert (await staff.get("/v1/sites")).status_code == 200
    for _ in range(2):
        assert (await tenant.post(own)).json()["ended_at"] is not None
    assert (await staff.get("/v1/sites")).status_code == 401
    audit = (await tenant.get("/v1/audit", params={"limit": 200})).json()["items"]
    acts = [entry["action"] for entry in audit if entry["action"].startswith("provider_entries")]
    assert acts == ["provider_entries.begun", "provider_entries.ended"]
    denied = [entry for entry in audit if entry["outcome"] == "denied"]
    assert [entry["actor"] for entry in denied] == [made["id"]]


async def test_an_entry_ends_by_itself(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await service.make_tenant()
    staff = service.caller((await enter(service, tenant, minutes=60)).json()["token"])
    assert (await enter(service, tenant, minutes=61)).status_code == 422
    assert (await enter(service, tenant, reason="")).status_code == 422
    begun = service.tools.clock.now()
    for minutes, status in ((59, 200), (61, 401)):
        later = begun + timedelta(minutes=minutes)
        monkeypatch.setattr(type(service.tools.clock), "now", lambda _, at=later: at)
        assert (await staff.get("/v1/sites")).status_code == status


async def test_the_provider_s_log_has_every_entry_and_cannot_be_changed(service: Service) -> None:
    tenant = await service.make_tenant()
    made = (await enter(service, tenant)).json()
    nobody = "/v1/provider/tenants/ten_01hq3v5k8m9n2p4r6s7t8w9x0z:enter"
    assert (await service.provider.post(nobody, {"reason": "none"})).status_code == 404
    acts = (await service.provider.get("/v1/provider/audit")).json()["items"]
    assert [(act["action"], act["details"]["entry"]) for act in acts] == [
        ("tenants.entered", made["id"])
    ]
    for statement in ("UPDATE provider_acts SET actor = 'x'", "DELETE FROM provider_acts"):
        with pytest.raises(ProgrammingError):
            async with service.tools.database.provider() as session:
                await session.orm.execute(text(statement))
