"""Checkpoints as the API shows them: packed ones and rows as one list and one picture."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.checkpoints.identity import checkpoint_id, milliseconds, moment_of
from app.checkpoints.merging import Taken
from app.checkpoints.service import forget_before, kept_checkpoints
from app.checkpoints.state import CheckpointState
from app.kit.ids import Kind, parse, show
from tests.app.protecting import acting, make_checkpoint, make_vpg, record
from tests.app.service import Caller, Service
from tests.app.test_vpgs import make_place

pytestmark = pytest.mark.anyio
_STEP = timedelta(seconds=5)


def _series(vpg_id: str, begin: datetime, count: int) -> list[Taken]:
    key = parse(Kind.VPG, vpg_id)
    host = parse(Kind.HOST, "host_00000000000000000000000001")
    made = []
    first = moment_of(milliseconds(begin))  # as the engine has it: its identifier says it
    for number in range(count):
        at = first + number * _STEP
        made.append(
            Taken(
                key,
                checkpoint_id(key, milliseconds(at)),
                at,
                at + timedelta(milliseconds=3),
                CheckpointState.COMPLETE,
                positions={host: number + 1},
                response_us=number,
            )
        )
    return made


async def _all(tenant: Caller, vpg_id: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(200):
        asked = {**query} | ({"cursor": cursor} if cursor else {})
        answer = await tenant.get(f"/v1/vpgs/{vpg_id}/checkpoints", params=asked)
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found
    raise AssertionError("the list does not end")


def _ids(taken: list[Taken]) -> list[str]:
    return [show(Kind.CHECKPOINT, one.id) for one in taken]


async def test_every_checkpoint_is_in_the_list_once_the_newest_first(service: Service) -> None:
    tenant = await service.make_tenant()
    vpg_id = (await make_vpg(tenant, "shop"))["id"]
    begin = service.tools.clock.now() - timedelta(hours=1)
    taken = _series(vpg_id, begin, 400)
    await record(service, tenant, *taken[:250])
    await record(service, tenant, *taken[200:])
    named = await make_checkpoint(service, tenant, vpg_id, "before the upgrade")
    expected = [named, *_ids(taken)[::-1]]
    for limit in (7, 100, 200):
        found = await _all(tenant, vpg_id, limit=limit)
        assert [one["id"] for one in found] == expected
    assert found[1]["positions"] == {"host_00000000000000000000000001": 400}
    assert [one["id"] for one in await _all(tenant, vpg_id, is_named="true")] == [named]
    assert await _all(tenant, vpg_id, state="failed") == []
    span = {"from": taken[10].expected_at.isoformat(), "to": taken[20].expected_at.isoformat()}
    assert [one["id"] for one in await _all(tenant, vpg_id, **span)] == _ids(taken[10:20])[::-1]
    one = (await tenant.get(f"/v1/vpgs/{vpg_id}/checkpoints/{expected[-1]}")).json()
    assert one == found[-1]
    other = (await make_vpg(tenant, "other"))["id"]
    foreign = await tenant.get(f"/v1/vpgs/{other}/checkpoints/{expected[-1]}")
    assert foreign.status_code == 404


async def test_the_rpo_is_the_age_of_the_newest_complete_checkpoint(service: Service) -> None:
    tenant = await service.make_tenant()
    vpg_id = (await make_vpg(tenant, "shop", rpo_seconds=60))["id"]
    now = service.tools.clock.now()
    key = parse(Kind.VPG, vpg_id)
    for age, state in ((50, CheckpointState.COMPLETE), (20, CheckpointState.PENDING)):
        at = now - timedelta(seconds=age)
        identifier = checkpoint_id(key, milliseconds(at))
        await record(service, tenant, Taken(key, identifier, at, at, state))
    vpg = (await tenant.get(f"/v1/vpgs/{vpg_id}")).json()
    assert 50 <= vpg["rpo_actual_seconds"] < 60
    assert (vpg["sla"], vpg["history_actual_seconds"]) == ("meeting", 0)
    for sla, names in (("meeting", ["shop"]), ("rpo_breached", []), ("unknown", [])):
        found = (await tenant.get("/v1/vpgs", params={"sla": sla})).json()["items"]
        assert [one["name"] for one in found] == names


@pytest.mark.parametrize(("hours", "buckets"), [(1, 60), (1, 6), (24, 7), (24 * 30, 100)])
async def test_a_timeline_counts_each_checkpoint_once(
    service: Service, hours: int, buckets: int
) -> None:
    tenant = await service.make_tenant()
    vpg_id = (await make_vpg(tenant, "shop"))["id"]
    begin = datetime.now(UTC) - timedelta(minutes=45)
    await record(service, tenant, *_series(vpg_id, begin, 500))
    await make_checkpoint(service, tenant, vpg_id, "named")
    end = datetime.now(UTC) + timedelta(seconds=1)
    query = {"from": (end - timedelta(hours=hours)).isoformat(), "to": end.isoformat()}
    answer = await tenant.get(f"/v1/vpgs/{vpg_id}/timeline", params={**query, "buckets": buckets})
    timeline = answer.json()
    assert len(timeline["buckets"]) <= buckets
    assert sum(one["checkpoints"] for one in timeline["buckets"]) == 501
    assert sum(one["complete"] for one in timeline["buckets"]) == 501
    assert sum(one["tagged"] for one in timeline["buckets"]) == 1
    assert max(one["response_us_max"] for one in timeline["buckets"]) == 499
    if timeline["bucket_seconds"] >= 600:
        assert timeline["bucket_seconds"] % 600 == 0


async def test_an_automatic_checkpoint_is_kept_when_it_is_pinned(service: Service) -> None:
    tenant = await service.make_tenant()
    vpg_id = (await make_vpg(tenant, "shop"))["id"]
    begin = service.tools.clock.now() - timedelta(hours=3)
    taken = _series(vpg_id, begin, 300)
    await record(service, tenant, *taken)
    ids = _ids(taken)
    path = f"/v1/vpgs/{vpg_id}/checkpoints"
    for _ in range(2):
        pinned = (await tenant.post(f"{path}/{ids[3]}:pin", {"reason": "quarter"})).json()
        assert (pinned["is_pinned"], pinned["pin_reason"]) == (True, "quarter")
    await tenant.post(f"{path}/{ids[5]}:pin", {})
    released = (await tenant.post(f"{path}/{ids[5]}:unpin")).json()
    assert (released["is_pinned"], released["id"]) == (False, ids[5])
    assert [one["id"] for one in await _all(tenant, vpg_id)] == ids[::-1]
    async with acting(service, tenant) as (session, _):
        kept = await kept_checkpoints(session, parse(Kind.VPG, vpg_id))
        assert (kept.pinned, kept.released) == ([taken[3].id.hex], [taken[5].id.hex])
        await forget_before(session, parse(Kind.VPG, vpg_id), taken[200].expected_at)
    left = [one["id"] for one in await _all(tenant, vpg_id)]
    assert left == [*ids[200:][::-1], ids[3]]
    assert (await tenant.get(f"{path}/{ids[3]}")).json()["is_pinned"] is True


async def test_a_tagged_checkpoint_is_asked_for_and_comes(service: Service) -> None:
    place = await make_place(service, "web")
    tenant = place.tenant
    empty = (await make_vpg(tenant, "empty"))["id"]
    refused = await tenant.post(f"/v1/vpgs/{empty}/checkpoints", {"tag": "x"})
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")
    vpg_id = (await make_vpg(tenant, "shop", place.machines["web"]))["id"]
    asked = await tenant.post(f"/v1/vpgs/{vpg_id}/checkpoints", {"tag": "before"})
    assert (asked.status_code, asked.json()["kind"]) == (202, "checkpoint.take")
    assert (await place.commands())[-1] == ("checkpoint", asked.json()["id"])
    shown = asked.json()["input"]["checkpoint"]
    path = f"/v1/vpgs/{vpg_id}/checkpoints/{shown}"
    assert (await tenant.get(path)).json()["state"] == "pending"
    now = service.tools.clock.now()
    key, identifier = parse(Kind.VPG, vpg_id), parse(Kind.CHECKPOINT, shown)
    for state in (CheckpointState.COMPLETE, CheckpointState.FAILED):
        await record(service, tenant, Taken(key, identifier, now, now, state, tag="before"))
    assert (await tenant.get(path)).json()["state"] == "complete"
    bad = await tenant.post(f"/v1/vpgs/{vpg_id}/checkpoints", {"tag": "a\u0000b"})
    assert bad.json()["code"] == "invalid_fields"


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2020-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"to": "9999-12-31T23:59:59Z"},
        {"from": "0001-01-01T00:00:00Z"},
        {"buckets": 0},
        {"buckets": 501},
        {"from": "yesterday"},
    ],
)
async def test_a_timeline_of_nonsense_is_refused(service: Service, query: dict[str, Any]) -> None:
    tenant = await service.make_tenant()
    vpg_id = (await make_vpg(tenant, "shop"))["id"]
    answer = await tenant.get(f"/v1/vpgs/{vpg_id}/timeline", params=query)
    assert answer.status_code in (400, 422)
