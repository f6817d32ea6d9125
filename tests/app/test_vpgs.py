"""Groups: made, filled, changed, paused, removed; what their hosts are told meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from app.kit.ids import Kind, parse, show
from app.machines.inventory import BadInventory, read_inventory
from app.models import Command
from app.vpgs.assigning import load_assignment
from app.vpgs.facts import Reported, record_held, record_statuses
from app.vpgs.state import Link, Sync
from tests.app.joining import join_host
from tests.app.protecting import acting, machine, machine_ids, make_vpg, report
from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Place:
    """A tenant with a host that has machines."""

    service: Service
    tenant: Caller
    host_id: str
    machines: dict[str, str]

    async def assignment(self) -> dict[str, Any]:
        """What the host is told now."""
        async with acting(self.service, self.tenant) as (session, _):
            host = parse(Kind.HOST, self.host_id)
            return await load_assignment(session, host, ["node:443"])

    async def commands(self) -> list[tuple[str, str | None]]:
        """What managers were asked for: the kind, and the operation."""
        async with acting(self.service, self.tenant) as (session, _):
            found = await session.orm.scalars(
                select(Command).where(Command.tenant_id == session.tenant_id).order_by(Command.id)
            )
            return [
                (one.kind, show(Kind.OPERATION, one.operation_id) if one.operation_id else None)
                for one in found
            ]

    async def tell(self, vpg_id: str, sync: Sync, **facts: Any) -> None:
        """The manager tells what is known of a group."""
        async with acting(self.service, self.tenant) as (session, by):
            reported = Reported(sync, Link.CONNECTED, **facts)
            await record_statuses(session, {parse(Kind.VPG, vpg_id): reported}, by.at)

    async def get(self, vpg_id: str) -> dict[str, Any]:
        """The group as it is."""
        answer: dict[str, Any] = (await self.tenant.get(f"/v1/vpgs/{vpg_id}")).json()
        return answer


async def make_place(service: Service, *names: str, **plan: Any) -> Place:
    """A tenant with a host and machines of two disks each."""
    tenant = await service.make_tenant(plan=plan or None)
    host_id, _ = await join_host(tenant, "hypervisor 1")
    machines = [machine(name, "vda", "vdb") for name in names]
    await report(service, tenant, host_id, *machines)
    return Place(service, tenant, host_id, await machine_ids(tenant))


async def test_a_group_tells_its_host_what_to_do_until_it_ends(service: Service) -> None:
    place = await make_place(service, "web", "db")
    assert (await place.assignment())["groups"] == []
    vpg = await make_vpg(place.tenant, "shop", place.machines["web"], rpo_seconds=7)
    assert (vpg["lifecycle"], vpg["sync"], vpg["sla"]) == ("initialising", "none", "unknown")
    assert (vpg["machines"], vpg["disks"], vpg["protected_bytes"]) == (1, 2, 2 << 30)
    assert vpg["rpo_actual_seconds"] is None
    told = await place.assignment()
    (group,) = told["groups"]
    assert (told["version"], group["vpg"], group["rpo_seconds"]) == (1, vpg["id"], 7)
    assert [disk["name"] for disk in group["disks"]] == ["web.vda", "web.vdb"]
    assert group["disks"][0]["source"] == {"kind": "path", "path": "/disks/web.vda"}
    path = f"/v1/vpgs/{vpg['id']}"
    await place.tenant.post(f"{path}/machines", {"machine_id": place.machines["db"]})
    told = await place.assignment()
    assert (told["version"], len(told["groups"][0]["disks"])) == (2, 4)
    again = await place.tenant.post(f"{path}/machines", {"machine_id": place.machines["db"]})
    assert (again.status_code, (await place.assignment())["version"]) == (200, 2)
    members = (await place.tenant.get(f"{path}/machines")).json()["items"]
    assert [(one["name"], one["host_id"]) for one in members] == [
        ("db", place.host_id),
        ("web", place.host_id),
    ]
    await place.tenant.post(f"{path}:pause")
    assert (await place.assignment())["groups"][0]["state"] == "paused"
    resumed = await place.tenant.post(f"{path}:resume")
    assert resumed.json()["lifecycle"] == "initialising"
    assert (await place.assignment())["version"] == 4
    await place.tell(vpg["id"], Sync.IN_SYNC)
    assert (await place.get(vpg["id"]))["lifecycle"] == "protecting"
    assert {kind for kind, _ in await place.commands()} == {"assign"}


async def test_groups_of_one_tenant_are_made_at_once_each_under_its_key(service: Service) -> None:
    tenant = await service.make_tenant(plan={"vpgs_max": 12})
    await tenant.get("/v1/vpgs")  # the credential's first use is written down, one by one

    async def make(number: int) -> int:
        headers = {"idempotency-key": f"make-{number}"}
        answer = await tenant.post("/v1/vpgs", {"name": f"group {number}"}, headers=headers)
        return answer.status_code

    answers = await asyncio.gather(*(make(number) for number in range(14)))
    assert sorted(answers) == [201] * 12 + [409] * 2
    listed = (await tenant.get("/v1/vpgs")).json()["items"]
    assert len({group["name"] for group in listed}) == len(listed) == 12


async def test_a_group_is_removed_when_its_host_has_heard_and_its_name_is_free(
    service: Service,
) -> None:
    place = await make_place(service, "web")
    vpg = await make_vpg(place.tenant, "shop", place.machines["web"])
    path = f"/v1/vpgs/{vpg['id']}"
    blind = await place.tenant.post(f"{path}:delete")
    assert blind.json()["code"] == "etag_required"
    ended = await place.tenant.post(f"{path}:delete", headers={"if-match": "*"})
    assert (ended.status_code, ended.json()["state"]) == (202, "queued")
    told = await place.assignment()
    assert (told["version"], told["groups"]) == (2, [])
    host = parse(Kind.HOST, place.host_id)
    for version, lifecycle in ((1, "removing"), (2, "removed")):
        async with acting(service, place.tenant) as (session, by):
            await record_held(session, host, version, by.at)
        assert (await place.get(vpg["id"]))["lifecycle"] == lifecycle
    operation = (await place.tenant.get(f"/v1/operations/{ended.json()['id']}")).json()
    assert (operation["state"], operation["outcome"]) == ("succeeded", {"journal": "kept"})
    assert (await place.tenant.get("/v1/vpgs")).json()["items"] == []
    gone = await place.tenant.get("/v1/vpgs", params={"lifecycle": "removed"})
    assert [one["id"] for one in gone.json()["items"]] == [vpg["id"]]
    refused = await place.tenant.post(f"{path}:resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")
    again = await make_vpg(place.tenant, "shop", place.machines["web"])
    assert again["id"] != vpg["id"]


async def test_a_forced_sync_reaches_the_manager_as_an_operation(service: Service) -> None:
    place = await make_place(service, "web")
    vpg = await make_vpg(place.tenant, "shop", place.machines["web"])
    answer = await place.tenant.post(f"/v1/vpgs/{vpg['id']}:force-sync", {"full": True})
    assert (answer.status_code, answer.json()["kind"]) == (202, "vpg.force_sync")
    assert answer.json()["input"] == {"disk": None, "full": True}
    assert (await place.commands())[-1] == ("force_sync", answer.json()["id"])
    foreign = {"disk_id": "disk_00000000000000000000000000"}
    unknown = await place.tenant.post(f"/v1/vpgs/{vpg['id']}:force-sync", foreign)
    assert unknown.status_code == 404


async def test_a_group_is_not_given_the_name_of_another(service: Service) -> None:
    place = await make_place(service, "web")
    await make_vpg(place.tenant, "one", place.machines["web"])
    other = (await place.tenant.post("/v1/vpgs", {"name": "two"})).json()
    path, given = f"/v1/vpgs/{other['id']}", {"if-match": "*"}
    wanted = {"name": "one", "description": "", "labels": {}}
    refused = await place.tenant.call("PUT", path, json=wanted, headers=given)
    assert (refused.status_code, refused.json()["code"]) == (409, "name_taken")
    assert (await place.tenant.get(path)).json()["name"] == "two"
    renamed = await place.tenant.call("PUT", path, json={**wanted, "name": "three"}, headers=given)
    assert (renamed.status_code, renamed.json()["name"]) == (200, "three")


async def test_a_disk_is_in_one_group(service: Service) -> None:
    place = await make_place(service, "web")
    await make_vpg(place.tenant, "one", place.machines["web"])
    wanted = {"name": "two", "machines": [{"machine_id": place.machines["web"]}]}
    refused = await place.tenant.post("/v1/vpgs", wanted)
    assert (refused.status_code, refused.json()["code"]) == (409, "disk_protected")
    assert len((await place.tenant.get("/v1/vpgs")).json()["items"]) == 1


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        ({"vpgs_max": 1}, "groups"),
        ({"machines_max": 1}, "machines"),
        ({"disks_max": 3}, "disks"),
        ({"protected_bytes_max": 3 << 30}, "protected bytes"),
    ],
)
async def test_a_plan_s_limits_hold(service: Service, plan: dict[str, int], what: str) -> None:
    place = await make_place(service, "web", "db", **plan)
    await make_vpg(place.tenant, "one", place.machines["web"])
    wanted = {"name": "two", "machines": [{"machine_id": place.machines["db"]}]}
    refused = await place.tenant.post("/v1/vpgs", wanted)
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    assert what in refused.json()["detail"]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"settings": {"rpo_seconds": 1, "checkpoint_seconds": 1}}, "settings_refused"),
        ({"settings": {"rpo_seconds": 10, "checkpoint_seconds": 11}}, "settings_refused"),
        ({"settings": {"history_hours": 721}}, "invalid_fields"),
        ({"store": "elsewhere"}, "settings_refused"),
        ({"labels": {"Bad Key": "x"}}, "invalid_fields"),
        ({"labels": {"key": "a\nb"}}, "invalid_fields"),
        ({"name": "a\u0007b"}, "invalid_fields"),
        ({"machines": [{"machine_id": "mach_x"}]}, "invalid_fields"),
        ({"profile_id": "prof_x"}, "not_found"),
        ({"recovery_site_id": "site_x"}, "not_found"),
        ({"lifecycle": "protecting"}, "invalid_fields"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    service: Service, wanted: dict[str, Any], code: str
) -> None:
    tenant = await service.make_tenant()
    refused = await tenant.post("/v1/vpgs", {"name": "shop", **wanted})
    assert refused.json()["code"] == code


async def test_a_group_is_put_by_its_name(service: Service) -> None:
    place = await make_place(service, "web", "db")
    whole = {"settings": {"rpo_seconds": 9}, "machines": [{"machine_id": place.machines["web"]}]}

    async def put(body: dict[str, Any], **headers: str) -> Any:
        path = "/v1/vpgs/by-name/web shop"
        return await place.tenant.call("PUT", path, json=body, headers=headers)

    made = await put(whole)
    assert (made.status_code, made.json()["name"], made.json()["machines"]) == (201, "web shop", 1)
    assert (await put(whole)).status_code == 428
    same = await put(whole, **{"if-match": made.headers["etag"]})
    assert (same.status_code, same.headers["etag"]) == (200, made.headers["etag"])
    more = {**whole, "machines": [{"machine_id": key} for key in place.machines.values()]}
    grown = await put(more, **{"if-match": "*"})
    assert (grown.status_code, grown.json()["machines"]) == (200, 2)
    less = await put(whole, **{"if-match": "*"})
    assert (less.status_code, less.json()["code"]) == (409, "plan_required")
    bad = await place.tenant.call("PUT", "/v1/vpgs/by-name/a%0Ab", json={})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_fields")


async def test_groups_are_found_by_labels_states_and_machines(service: Service) -> None:
    place = await make_place(service, "web")
    tenant = place.tenant
    wanted = {"name": "shop", "labels": {"app": "shop", "tier": "gold"}}
    shop = (await tenant.post("/v1/vpgs", wanted)).json()
    machines = [{"machine_id": place.machines["web"]}]
    other = await tenant.post("/v1/vpgs", {"name": "other", "machines": machines})
    found = {}
    for query in (
        "label=app=shop", "label=app", "label=app=x", "label=app&label=tier=gold",
        "lifecycle=draft", "lifecycle=initialising", "sync=none", "link=connected",
        "sla=unknown", "sla=meeting", f"machine_id={place.machines['web']}", "priority=high",
    ):  # fmt: skip
        items = (await tenant.get(f"/v1/vpgs?{query}")).json()["items"]
        found[query] = [one["name"] for one in items]
    by_machine = found.pop(f"machine_id={place.machines['web']}")
    assert (by_machine, other.json()["name"]) == (["other"], "other")
    assert found == {
        "label=app=shop": ["shop"],
        "label=app": ["shop"],
        "label=app=x": [],
        "label=app&label=tier=gold": ["shop"],
        "lifecycle=draft": ["shop"],
        "lifecycle=initialising": ["other"],
        "sync=none": ["shop", "other"],
        "link=connected": [],
        "sla=unknown": ["shop", "other"],
        "sla=meeting": [],
        "priority=high": [],
    }
    assert (await tenant.get("/v1/vpgs?label=Bad Key")).status_code == 400
    assert (await tenant.get("/v1/vpgs?machine_id=x")).status_code == 400
    assert shop["labels"] == {"app": "shop", "tier": "gold"}


async def test_a_profile_gives_its_settings_and_cannot_go_while_it_is_named(
    service: Service,
) -> None:
    tenant = await service.make_tenant()
    wanted = {"name": "gold", "settings": {"rpo_seconds": 6, "history_hours": 48}}
    profile = (await tenant.post("/v1/service-profiles", wanted)).json()
    made = await tenant.post("/v1/vpgs", {"name": "shop", "profile_id": profile["id"]})
    assert made.json()["settings"]["history_hours"] == 48
    path = f"/v1/service-profiles/{profile['id']}"
    used = await tenant.call("DELETE", path, headers={"if-match": "*"})
    assert (used.status_code, used.json()["code"]) == (409, "in_use")
    changed = await tenant.call(
        "PUT", path, json={"name": "gold", "settings": {}}, headers={"if-match": "*"}
    )
    assert changed.json()["settings"]["history_hours"] == 24
    kept = (await tenant.get(f"/v1/vpgs/{made.json()['id']}")).json()
    assert kept["settings"]["history_hours"] == 48


async def test_a_machine_that_goes_or_grows_is_told(service: Service) -> None:
    place = await make_place(service, "web")
    await make_vpg(place.tenant, "shop", place.machines["web"])
    grown = machine("web", "vda", "vdb", "vdc")
    grown["disks"][0]["path"] = "/moved/web.vda"
    await report(service, place.tenant, place.host_id, grown)
    told = await place.assignment()
    assert told["version"] == 2
    assert told["groups"][0]["disks"][0]["source"]["path"] == "/moved/web.vda"
    await report(service, place.tenant, place.host_id)
    await report(service, place.tenant, place.host_id)
    alerts = (await place.tenant.get("/v1/alerts", params={"is_open": True})).json()["items"]
    assert sorted(one["code"] for one in alerts) == ["disk.unprotected", "machine.missing"]
    assert len((await place.assignment())["groups"][0]["disks"]) == 2
    await report(service, place.tenant, place.host_id, grown)
    alerts = (await place.tenant.get("/v1/alerts", params={"is_open": True})).json()["items"]
    assert [one["code"] for one in alerts] == ["disk.unprotected"]
    path = f"/v1/alerts/{alerts[0]['id']}:acknowledge"
    acknowledged = (await place.tenant.post(path)).json()
    assert acknowledged["acknowledged_by"].startswith("key_")
    assert acknowledged["cleared_at"] is None


def test_a_host_s_inventory_that_is_none_is_refused() -> None:
    twice = machine("web", "vda", "vda")
    messages: list[dict[str, Any]] = [
        {},
        {"machines": 7, "digest": "x"},
        {"machines": [{"name": "a\nb", "disks": []}], "digest": "x"},
        {"machines": [twice], "digest": "x"},
        {"machines": [machine("web", "vda", size=-1)], "digest": "x"},
        {"machines": [{"name": "web", "disks": [{"name": "vda", "bytes": 1}]}], "digest": "x"},
    ]
    for message in messages:
        with pytest.raises(BadInventory):
            read_inventory(message)
