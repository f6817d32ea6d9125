"""A tenant's policy: wider at once, narrower by a plan; applied, nothing is deleted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.kit.ids import Kind, parse
from app.rights.policy import Policy, PoolRight, is_narrower
from tests.app.placing import (
    Json,
    id_of,
    join_pool,
    made,
    make_pool,
    place,
    placement,
    policy,
    pools_of,
    set_policy,
)
from tests.app.protecting import acting, machine, machine_ids, make_vpg, report
from tests.app.service import Caller, Service, running_service
from tests.app.test_datanodes import FOLDER, connected, joined_node
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
_ONE, _TWO, _HOST = UUID(int=1), UUID(int=2), UUID(int=3)
_ALL, _SOME = PoolRight(10), PoolRight(10, frozenset({_HOST}))


@pytest.mark.parametrize(
    ("before", "after", "narrower"),
    [
        (Policy(), Policy(), False),
        (Policy(), Policy(("CH",)), True),
        (Policy(("CH",)), Policy(), False),
        (Policy(("CH",)), Policy(("CH", "DE")), False),
        (Policy(("CH", "DE")), Policy(("DE",)), True),
        (Policy(("CH-ZH",)), Policy(("CH",)), False),
        (Policy(("CH",)), Policy(("CH-ZH",)), True),
        (Policy(None, {_ONE: _ALL}), Policy(None, {_ONE: _ALL, _TWO: _ALL}), False),
        (Policy(None, {_ONE: _ALL, _TWO: _ALL}), Policy(None, {_ONE: _ALL}), True),
        (Policy(None, {_ONE: _ALL}), Policy(None, {_ONE: PoolRight(9)}), True),
        (Policy(None, {_ONE: _ALL}), Policy(None, {_ONE: _SOME}), True),
        (
            Policy(None, {_ONE: _SOME}),
            Policy(None, {_ONE: _ALL}),
            False,
        ),
    ],
)
def test_what_is_narrower(before: Policy, after: Policy, narrower: bool) -> None:
    assert is_narrower(before, after) is narrower


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at


async def path_of(tenant: Caller) -> str:
    """Where the tenant's policy is."""
    return f"/v1/provider/tenants/{await id_of(tenant)}/policy"


async def narrowed(service: Service, tenant: Caller, wanted: Json) -> Json:
    """The plan of a policy that is refused without one."""
    path = await path_of(tenant)
    answer = await service.provider.call("PUT", path, json=wanted, headers={"if-match": "*"})
    assert (answer.status_code, answer.json()["code"]) == (409, "plan_required")
    return await made(service.provider, f"{path}:plan", wanted)


async def apply(service: Service, tenant: Caller, plan_id: str) -> Any:
    """The answer to the plan's application."""
    return await service.provider.post(f"{await path_of(tenant)}:apply", {"plan_id": plan_id})


async def test_a_narrowed_policy_is_planned_and_then_holds(service: Service) -> None:
    """Streams leave the forbidden place and go on to the permitted one; the placement there ends;
    groups that name it are told; all that was there stays.
    """
    pools = [await make_pool(service, name, name) for name in ("CH", "DE")]
    hosts = [await join_pool(service, pool, f"cloud {pool}") for pool in pools]
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    nodes = [await joined_node(service, name, territory=name) for name in ("CH", "DE")]
    store = {**FOLDER, "name": "frankfurt", "territory": "DE", "url": "file:///frankfurt"}
    await service.provider.post("/v1/provider/journal-stores", store)
    tenant = await service.make_tenant(plan={"territories": ["CH", "DE"]})
    own = await id_of(tenant)
    await set_policy(service, tenant, policy(*pools, territories=["CH", "DE"]))
    placed = [await place(service, tenant, host_id) for host_id in hosts]
    await report(service, tenant, placed[0][1], machine("a", "vda"))
    vpg = await make_vpg(tenant, "shop", (await machine_ids(tenant))["a"])
    async with connected(service, nodes[0][0]) as swiss, connected(service, nodes[1][0]) as german:
        assert (await swiss.read_until_told(own)).store.url == FOLDER["url"]
        record = await german.read_until_told(own)
        assert record.store.url == FOLDER["url"]

        plan = await narrowed(service, tenant, policy(*pools, territories=["DE"]))
        effects = {one["what"]: one for one in plan["effects"]}
        assert effects["territories"]["after"] == ["DE"]
        gone = effects[f"placements.{placed[0][0]}"]
        assert (gone["groups"], gone["machines"]) == (1, 1)
        assert {"data_nodes.CH", "journal_stores.default"} <= effects.keys()
        assert not [what for what in effects if what.startswith("no ")]
        assert "shop" not in str(plan), "the provider does not see what a tenant has"
        assert (await tenant.get("/v1/alerts")).json()["items"] == []
        assert (await apply(service, tenant, plan["id"])).status_code == 200

        while own in (swiss.tenants or []):
            await swiss.read()
        record = await german.read_until_told(own, record.version)
        assert record.store.url == "file:///frankfurt"
    assert (await placement(service, placed[0][0]))["state"] == "withdrawing"
    assert (await placement(service, placed[1][0]))["state"] == "placed"
    shown = {one["territory"]: one["is_permitted"] for one in await pools_of(tenant)}
    assert shown == {"CH": False, "DE": True}
    query = {"code": "jurisdiction.violated"}
    (alert,) = (await tenant.get("/v1/alerts", params=query)).json()["items"]
    assert (alert["subject"], alert["cleared_at"]) == (vpg["id"], None)
    assert alert["data"]["places"] == ["the journal store default in CH", "the pool CH in CH"]
    assert (await tenant.get(f"/v1/vpgs/{vpg['id']}")).json()["lifecycle"] == "initialising"
    # Wider again, it is over.
    await set_policy(service, tenant, policy(*pools, territories=["CH", "DE"]))
    (alert,) = (await tenant.get("/v1/alerts", params=query)).json()["items"]
    assert alert["cleared_at"] is not None
    changed = [
        one
        for one in (await tenant.get("/v1/audit", params={"limit": 200})).json()["items"]
        if one["action"] == "policy.changed"
    ]
    assert [one["details"]["policy"]["territories"] for one in changed] == [
        ["CH", "DE"],
        ["DE"],
        ["CH", "DE"],
    ]


async def test_hosts_are_told_other_doors(service: Service) -> None:
    """The manager of each host is asked to tell it at once, with the change."""
    from sqlalchemy import select

    from app.datanodes.service import doors_of_tenant
    from app.models import Command, HostAssignment
    from tests.app.joining import join_host

    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    for name in ("CH", "CH-ZH", "DE"):
        await joined_node(service, name, territory=name)
    tenant = await service.make_tenant()
    host_id, _ = await join_host(tenant, "home")

    async def told() -> tuple[list[str], int, int]:
        async with acting(service, tenant) as (session, _):
            key = parse(Kind.HOST, host_id)
            commands = await session.orm.scalars(select(Command).where(Command.subject == key))
            version = await session.orm.scalar(
                select(HostAssignment.version).where(HostAssignment.host_id == key)
            )
            return sorted(await doors_of_tenant(session)), len(commands.all()), version or 0

    doors, commands, version = await told()
    assert doors == ["CH-ZH:7440", "CH:7440", "DE:7440"]
    plan = await narrowed(service, tenant, policy(territories=["CH"]))
    assert (await apply(service, tenant, plan["id"])).status_code == 200
    assert await told() == (["CH-ZH:7440", "CH:7440"], commands + 1, version + 1)
    # Nowhere is said before it is done.
    plan = await narrowed(service, tenant, policy(territories=["JP"]))
    assert {"no data node", "no journal store"} <= {one["what"] for one in plan["effects"]}
    assert (await apply(service, tenant, plan["id"])).status_code == 200
    assert (await told())[0] == []
    answer = await tenant.post("/v1/vpgs", {"name": "late"})
    assert (answer.status_code, answer.json()["code"]) == (409, "jurisdiction")


async def test_a_plan_is_applied_as_it_was_read_or_not_at_all(cluster: Cluster) -> None:
    clock = SetClock()
    with cluster.database() as url:
        async with running_service(url, clock) as service:
            tenant, other = await service.make_tenant(), await service.make_tenant()
            narrow = policy(territories=["CH"])
            plan = await narrowed(service, tenant, narrow)
            assert (await apply(service, other, plan["id"])).status_code == 404
            assert (await apply(service, tenant, "plan_x")).status_code == 404
            # Another change came between.
            await set_policy(service, tenant, policy(territories=None))
            stale = await apply(service, tenant, plan["id"])
            assert (stale.status_code, stale.json()["code"]) == (409, "plan_stale")
            clock.at += timedelta(minutes=16)
            late = await apply(service, tenant, stale.json()["plan"]["id"])
            assert late.json()["code"] == "plan_stale"
            fresh = late.json()["plan"]["id"]
            assert (await apply(service, tenant, fresh)).json()["territories"] == ["CH"]
            assert (await apply(service, tenant, fresh)).json()["code"] == "plan_stale"


async def test_targets_are_asked_for_when_they_are_chosen_and_when_they_change(
    service: Service,
) -> None:
    tenant = await service.make_tenant(plan={"territories": ["CH"]})
    sites = {}
    for name in ("CH", "DE"):
        site = await made(tenant, "/v1/sites", {"name": name, "territory": name})
        sites[name] = site["id"]
    for field in ("protected_site_id", "recovery_site_id"):
        answer = await tenant.post("/v1/vpgs", {"name": "shop", field: sites["DE"]})
        assert (answer.status_code, answer.json()["code"]) == (409, "jurisdiction")
    vpg = await made(tenant, "/v1/vpgs", {"name": "shop", "recovery_site_id": sites["CH"]})
    path = f"/v1/vpgs/{vpg['id']}"
    moved = {"name": "shop", "recovery_site_id": sites["DE"]}
    answer = await tenant.call("PUT", path, json=moved, headers={"if-match": "*"})
    assert answer.json()["code"] == "jurisdiction"
    answer = await tenant.post(f"{path}:plan", {"recovery_site_id": sites["DE"]})
    assert answer.json()["code"] == "jurisdiction"


async def test_a_site_that_changes_its_territory_is_looked_at_again(service: Service) -> None:
    from tests.app.joining import join_host

    tenant = await service.make_tenant(plan={"territories": ["CH"]})
    site = await made(tenant, "/v1/sites", {"name": "here", "territory": "CH"})
    host_id, _ = await join_host(tenant, "home")
    await report(service, tenant, host_id, machine("a", "vda"))
    ids = await machine_ids(tenant)
    wanted = {
        "name": "shop",
        "recovery_site_id": site["id"],
        "machines": [{"machine_id": ids["a"]}],
    }
    vpg = await made(tenant, "/v1/vpgs", wanted)
    for territory, is_open in (("DE", True), ("CH-ZH", False)):
        body = {"name": "here", "territory": territory}
        path, headers = f"/v1/sites/{site['id']}", {"if-match": "*"}
        await tenant.call("PUT", path, json=body, headers=headers)
        query = {"code": "jurisdiction.violated"}
        (alert,) = (await tenant.get("/v1/alerts", params=query)).json()["items"]
        assert (alert["subject"], alert["cleared_at"] is None) == (vpg["id"], is_open)


async def test_a_revoked_host_of_the_provider_s_takes_every_tenant_with_it(
    service: Service,
) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "cloud-1")
    tenants = [await service.make_tenant() for _ in range(2)]
    placements = []
    for tenant in tenants:
        await set_policy(service, tenant, policy(pool))
        placements.append((await place(service, tenant, host_id))[0])
    answer = await service.provider.post(f"/v1/provider/hosts/{host_id}:revoke")
    assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
    for tenant, placement_id in zip(tenants, placements, strict=True):
        assert (await placement(service, placement_id))["state"] == "withdrawn"
        assert not (await pools_of(tenant))[0]["is_serving"]
        wanted = {"tenant_id": await id_of(tenant), "host_id": host_id}
        answer = await service.provider.post("/v1/provider/placements", wanted)
        assert answer.json()["code"] == "illegal_transition"
