"""What journals take in the store: measured, billed, told in time; beyond the plan's limit nothing
new is protected, and nothing that is protected suffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.jobs.plan import JobKind
from app.kit.ids import Kind, parse
from app.vpgs.retained import EXCEEDED, NEAR, alert_of
from tests.app.service import Caller, Service
from tests.app.test_jobs import ask, protected, the_job, tools_of
from workers.tasks.runner import run_job
from workers.tasks.steps import STEPS
from workers.tasks.stores import store_of

pytestmark = pytest.mark.anyio
_SIZES = {"chain/0": 500, "chain/1": 300, "index/1/0": 150, "pins/p": 50}


def test_people_are_told_near_the_limit_and_beyond_it() -> None:
    assert [alert_of(size, 100) for size in (79, 80, 100, 101)] == [None, NEAR, NEAR, EXCEEDED]
    assert alert_of(1 << 60, None) is None


async def _run(service: Service, folder: Path, kind: JobKind) -> None:
    key = await the_job(service, kind)
    ask(service, "UPDATE jobs SET due_at = now() - interval '1 second', sent_at = NULL")
    assert await run_job(tools_of(service, folder), key, STEPS) == "done"


async def _codes(tenant: Caller) -> list[str]:
    alerts = (await tenant.get("/v1/alerts")).json()["items"]
    return [one["code"] for one in alerts if one["cleared_at"] is None]


async def _set_plan(service: Service, tenant: dict[str, Any], most: int | None) -> None:
    plan = {**tenant["plan"], "retained_bytes_max": most}
    path = f"/v1/provider/tenants/{tenant['id']}"
    tag = (await service.provider.get(path)).headers["etag"]
    answer = await service.provider.call(
        "PUT", f"{path}/plan", json=plan, headers={"if-match": tag}
    )
    assert answer.status_code == 200, answer.text


async def test_what_a_journal_takes_is_measured_metered_and_limited(
    service: Service, tmp_path: Path
) -> None:
    tenant = await protected(service)
    own = (await tenant.get("/v1/tenant")).json()
    (group,) = (await tenant.get("/v1/vpgs")).json()["items"]
    assert group["retained_bytes"] is None
    for name, size in _SIZES.items():
        file = tmp_path / "store" / own["id"] / group["id"] / "host_a" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    await _run(service, tmp_path, JobKind.VPG_COLLECT)
    (group,) = (await tenant.get("/v1/vpgs")).json()["items"]
    assert group["retained_bytes"] == 1_000

    await _run(service, tmp_path, JobKind.METER_USAGE)
    (hour,) = (await tenant.get("/v1/usage")).json()["items"]
    assert hour["retained_bytes"] == 1_000
    (bill,) = (await service.provider.get("/v1/provider/usage")).json()["items"]
    assert (bill["retained_byte_hours"], bill["retained_bytes_max"]) == (1_000, 1_000)
    assert await _codes(tenant) == []

    await _set_plan(service, own, 1_200)
    await _run(service, tmp_path, JobKind.METER_USAGE)
    assert await _codes(tenant) == [NEAR]
    assert (await tenant.post("/v1/vpgs", {"name": "near"})).status_code == 201
    await _set_plan(service, own, 999)
    await _run(service, tmp_path, JobKind.METER_USAGE)
    assert await _codes(tenant) == [EXCEEDED]
    refused = await tenant.post("/v1/vpgs", {"name": "over"})
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    assert "1000 bytes" in refused.json()["detail"]
    kept = (await tenant.get(f"/v1/vpgs/{group['id']}")).json()
    assert (kept["lifecycle"], kept["settings"]) == (group["lifecycle"], group["settings"])
    await _set_plan(service, own, None)
    await _run(service, tmp_path, JobKind.METER_USAGE)
    assert await _codes(tenant) == []
    assert (await tenant.post("/v1/vpgs", {"name": "over"})).status_code == 201


async def test_work_on_a_journal_is_done_in_the_store_that_has_it(
    service: Service, tmp_path: Path
) -> None:
    """The default store may not hold this tenant's data: its data nodes write another."""
    for name, territory in (("default", "US"), ("german", "DE")):
        store = {"name": name, "url": f"file://{tmp_path}/{name}", "wall": "folder"}
        answer = await service.provider.post(
            "/v1/provider/journal-stores", {**store, "territory": territory}
        )
        assert answer.status_code == 201, answer.text
    tenant = await protected(service, territories=["DE"])
    own = (await tenant.get("/v1/tenant")).json()
    (group,) = (await tenant.get("/v1/vpgs")).json()["items"]
    for name, size in (("default", 7), ("german", 512)):
        file = tmp_path / name / own["id"] / group["id"] / "host_a/chain/0"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(size))
    await _run(service, tmp_path, JobKind.VPG_COLLECT)
    (group,) = (await tenant.get("/v1/vpgs")).json()["items"]
    assert group["retained_bytes"] == 512


async def test_a_store_with_one_credential_for_all_is_entered_by_it(
    service: Service, tmp_path: Path
) -> None:
    credential = {"access_key_id": "AK", "secret_access_key": "SK"}
    store = {"name": "default", "url": "s3://b?endpoint=http://127.0.0.1:1", "wall": "shared"}
    answer = await service.provider.post(
        "/v1/provider/journal-stores", {**store, "territory": "CH", **credential}
    )
    assert answer.status_code == 201, answer.text
    tenant = await protected(service)
    tenant_id = parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"])
    tools = tools_of(service, tmp_path)
    async with tools.database.tenant(tenant_id) as session:
        found = await store_of(tools.database, session, tools.sealer, tools.store_url)
    assert found == {"store": store["url"], "credentials": {**credential, "session_token": None}}
