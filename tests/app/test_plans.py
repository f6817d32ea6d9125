"""Plans: what they say, when they are stale, and what waits before it destroys."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from app.events.ledger import write_ledger
from app.keys.port import KeyMissing
from app.keys.service import wrapped_group_key
from app.kit.ids import Kind, parse
from app.vpgs.due import run_due
from app.vpgs.plan import Change, Group, Member, destroys_history, effects_of
from app.vpgs.settings import Settings
from tests.app.protecting import acting, make_vpg
from tests.app.service import Caller, Service
from tests.app.test_vpgs import Place, make_place

pytestmark = pytest.mark.anyio
BEFORE = Settings().model_dump(mode="json")


def _group(**changed: Any) -> Group:
    members = {"mach_1": Member("web", 7), "mach_2": Member("db", 5)}
    return Group("shop", {**BEFORE, **changed}, None, members, 2, 36 * 3600.0, 999)


@pytest.mark.parametrize(
    ("before", "after", "what", "is_undoable"),
    [
        ({}, {"history_hours": 12}, "history_hours", False),
        ({}, {"history_hours": 48}, "history_hours", True),
        ({}, {"journal_bytes_max": 1 << 31}, "journal_bytes_max", False),
        (
            {"journal_bytes_max": 1 << 31},
            {"journal_bytes_max": 1 << 30},
            "journal_bytes_max",
            False,
        ),
        ({"journal_bytes_max": 1 << 31}, {"journal_bytes_max": None}, "journal_bytes_max", True),
        ({}, {"rpo_seconds": 60}, "rpo_seconds", True),
        ({}, {"checkpoint_seconds": 2}, "checkpoint_seconds", True),
        ({}, {"sync_mbit_per_s": 3.0}, "sync_mbit_per_s", True),
    ],
)
def test_each_setting_has_its_effect(
    before: dict[str, Any], after: dict[str, Any], what: str, is_undoable: bool
) -> None:
    group = _group(**before)
    wanted = {**group.settings, **after}
    (effect,) = effects_of(group, Change(settings=wanted))
    assert (effect.what, effect.is_undoable) == (what, is_undoable)
    assert destroys_history(group.settings, wanted) is not is_undoable
    assert effects_of(group, Change(settings=dict(group.settings))) == []


def test_a_plan_says_what_is_lost() -> None:
    (shorter,) = effects_of(_group(), Change(settings={**BEFORE, "history_hours": 12}))
    assert (shorter.history_seconds_lost, shorter.checkpoints_lost) == (24 * 3600, 999)
    (removed,) = effects_of(_group(), Change(remove=("mach_1",)))
    assert (removed.before, removed.bytes_to_sync) == ("web", 7)
    (ended,) = effects_of(_group(), Change(delete=True))
    assert (ended.bytes_to_sync, ended.is_undoable) == (12, False)


async def _plan(tenant: Caller, vpg_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = await tenant.post(f"/v1/vpgs/{vpg_id}:plan", wanted)
    assert answer.status_code == 201, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


async def _apply(tenant: Caller, vpg_id: str, plan: dict[str, Any], **said: str) -> Any:
    return await tenant.post(f"/v1/vpgs/{vpg_id}:apply", {"plan_id": plan["id"], **said})


async def test_a_machine_goes_by_a_plan(service: Service) -> None:
    place = await make_place(service, "web", "db")
    vpg = await make_vpg(place.tenant, "shop", *place.machines.values())
    plan = await _plan(place.tenant, vpg["id"], {"remove_machines": [place.machines["web"]]})
    assert plan["effects"][0]["before"] == "web"
    assert (await place.get(vpg["id"]))["machines"] == 2
    done = await _apply(place.tenant, vpg["id"], plan)
    assert (done.status_code, done.json()["state"]) == (202, "succeeded")
    assert (await place.get(vpg["id"]))["machines"] == 1
    assert [disk["machine"] for disk in (await place.assignment())["groups"][0]["disks"]] == [
        "db",
        "db",
    ]
    unknown = await place.tenant.post(
        f"/v1/vpgs/{vpg['id']}:plan", {"remove_machines": [place.machines["web"]]}
    )
    assert unknown.status_code == 404


async def test_a_stale_plan_is_answered_with_a_new_one(service: Service) -> None:
    place = await make_place(service, "web", "db")
    vpg = await make_vpg(place.tenant, "shop", place.machines["web"])
    wanted = {"settings": {"rpo_seconds": 20}}
    plan = await _plan(place.tenant, vpg["id"], wanted)
    machines = {"machine_id": place.machines["db"]}
    await place.tenant.post(f"/v1/vpgs/{vpg['id']}/machines", machines)
    stale = await _apply(place.tenant, vpg["id"], plan)
    assert (stale.status_code, stale.json()["code"]) == (409, "plan_stale")
    again = stale.json()["plan"]
    assert again["id"] != plan["id"]
    done = await _apply(place.tenant, vpg["id"], again)
    assert done.status_code == 202, done.text
    assert (await place.get(vpg["id"]))["settings"]["rpo_seconds"] == 20
    assert (await _apply(place.tenant, vpg["id"], again)).json()["code"] == "plan_stale"


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"delete": True, "settings": {}},
        {"remove_machines": ["mach_x"], "delete": True},
        {"settings": {"rpo_seconds": 1, "checkpoint_seconds": 1}},
    ],
)
async def test_a_plan_of_nonsense_is_refused(service: Service, wanted: dict[str, Any]) -> None:
    tenant = await service.make_tenant()
    vpg = await make_vpg(tenant, "shop")
    assert (await tenant.post(f"/v1/vpgs/{vpg['id']}:plan", wanted)).status_code == 422


async def _run_due(place: Place, ahead: timedelta) -> None:
    async with acting(place.service, place.tenant) as (session, by):
        happenings = await run_due(session, by.at + ahead)
        await write_ledger(session, happenings, [], by)


async def test_shorter_history_waits_and_can_be_cancelled(service: Service) -> None:
    place = await make_place(service, "web")
    vpg = await make_vpg(place.tenant, "shop", place.machines["web"])
    path = f"/v1/vpgs/{vpg['id']}"
    body = {"name": "shop", "settings": {**vpg["settings"], "history_hours": 6}}
    direct = await place.tenant.call("PUT", path, json=body, headers={"if-match": "*"})
    assert (direct.status_code, direct.json()["code"]) == (409, "plan_required")
    wanted = {"settings": {**vpg["settings"], "history_hours": 6, "rpo_seconds": 30}}
    plan = await _plan(place.tenant, vpg["id"], wanted)
    assert (plan["destroys_history"], plan["delay_seconds"]) == (True, 86_400)
    for said in ({}, {"confirm_name": "shop"}, {"confirm_name": "x", "reason": "y"}):
        refused = await _apply(place.tenant, vpg["id"], plan, **said)
        assert (refused.status_code, refused.json()["code"]) == (422, "name_not_confirmed")
    said = {"confirm_name": "shop", "reason": "costs"}
    waits = await _apply(place.tenant, vpg["id"], plan, **said)
    assert (waits.status_code, waits.json()["state"]) == (202, "queued")
    settings = (await place.get(vpg["id"]))["settings"]
    assert (settings["rpo_seconds"], settings["history_hours"]) == (30, 24)
    await _run_due(place, timedelta(hours=23))
    assert (await place.get(vpg["id"]))["settings"]["history_hours"] == 24
    cancelled = await place.tenant.post(f"/v1/operations/{waits.json()['id']}:cancel")
    assert cancelled.json()["state"] == "cancelled"
    await _run_due(place, timedelta(hours=25))
    assert (await place.get(vpg["id"]))["settings"]["history_hours"] == 24
    plan = await _plan(place.tenant, vpg["id"], wanted)
    await _apply(place.tenant, vpg["id"], plan, **said)
    await _run_due(place, timedelta(hours=25))
    assert (await place.get(vpg["id"]))["settings"]["history_hours"] == 6


async def test_a_journal_is_destroyed_only_after_its_group_and_its_delay(service: Service) -> None:
    place = await make_place(service)
    vpg = await make_vpg(place.tenant, "shop")
    path = f"/v1/vpgs/{vpg['id']}"
    said = {"confirm_name": "shop", "reason": "contract ended"}
    alive = await place.tenant.post(f"{path}:destroy-journal", said)
    assert (alive.status_code, alive.json()["code"]) == (409, "illegal_transition")
    ended = await place.tenant.post(f"{path}:delete", headers={"if-match": "*"})
    assert ended.json()["state"] == "succeeded"
    operator = await service.make_caller(place.tenant, "operator")
    assert (await operator.post(f"{path}:destroy-journal", said)).status_code == 403
    waits = await place.tenant.post(f"{path}:destroy-journal", said)
    again = await place.tenant.post(f"{path}:destroy-journal", said)
    assert (waits.status_code, waits.json()["id"]) == (202, again.json()["id"])
    key = parse(Kind.VPG, vpg["id"])
    for hours in (23, 25):
        async with acting(service, place.tenant) as (session, _):
            await wrapped_group_key(session, key)
        await _run_due(place, timedelta(hours=hours))
    async with acting(service, place.tenant) as (session, _):
        with pytest.raises(KeyMissing):
            await wrapped_group_key(session, key)
    operation = (await place.tenant.get(f"/v1/operations/{waits.json()['id']}")).json()
    assert operation["outcome"]["journal"] == "unreadable"
