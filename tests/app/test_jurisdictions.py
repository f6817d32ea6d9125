"""C6: over random sequences of calls of the API, nothing ends with a tenant's data allowed at a
place where it may not be. Three jurisdictions, each with a site, a pool, a host, a data node and a
store: US, UK (GB) and APAC (JP).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from app.datanodes.gateway import NodeTools
from app.datanodes.loading import load_records, record_versions
from app.datanodes.restoring import restore_places
from app.datanodes.service import doors_of_tenant
from app.dsm.assignments import Place
from app.dsm.commands import CommandKind, Waiting
from app.dsm.intake import bodies_of
from app.kit.ids import Kind, parse, show
from app.kit.problems import Problem
from app.models import Command, DataNode, Host
from app.models.hosts import HostState
from app.rights.orders import PlacementOrder, settle_withdrawal
from tests.app.joining import enrol, join_host, make_key, request_of
from tests.app.placing import (
    Json,
    ask_to_place,
    id_of,
    join_pool,
    made,
    make_pool,
    order_of,
    policy,
    withdraw,
)
from tests.app.protecting import machine, machine_ids, make_vpg, report
from tests.app.service import Caller, Service, running_service
from tests.app.test_datanodes import joined_node
from tests.app.test_restores import make_door_at
from tests.servers.postgres import Cluster

TERRITORIES = ("US", "GB", "JP")
_ANY = {"if-match": "*"}
_EXAMPLES = 12


@dataclass
class Deployment:
    """What the provider has in each territory."""

    service: Service
    runner: asyncio.Runner
    pools: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)

    async def build(self) -> None:
        for place in TERRITORIES:
            self.pools[place] = await make_pool(self.service, f"pool {place}", place)
            self.hosts[place] = await join_pool(self.service, self.pools[place], f"host {place}")
            self.nodes[place], _ = await joined_node(self.service, place, territory=place)
            store = {"name": f"store-{place}".lower(), "territory": place, "wall": "folder"}
            store |= {"name": "default"} if place == "US" else {}
            url = f"file:///journals/{place}"
            await made(self.service.provider, "/v1/provider/journal-stores", {**store, "url": url})


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[World]:
    """One service and one tenant for all examples: each begins where nothing is restricted."""
    with asyncio.Runner() as runner, cluster.database() as url:
        stack = AsyncExitStack()
        service = runner.run(stack.enter_async_context(running_service(url)))
        built = Deployment(service, runner)
        runner.run(built.build())
        try:
            yield runner.run(make_world(built))
        finally:
            runner.run(stack.aclose())


@dataclass
class World:
    """A tenant with a site, a host and a group for each territory."""

    deployment: Deployment
    tenant: Caller
    id: str
    sites: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    vpg_id: str = ""
    permitted: list[str] | None = None
    granted: set[str] = field(default_factory=set)

    async def reset(self) -> None:
        """As it was in the beginning: no policy, nothing placed, nothing waits."""
        for where in TERRITORIES:
            await self.move_site(where, where)
        await self.set_policy(None, [])
        provider, tools = self.deployment.service.provider, self.deployment.service.tools
        query = {"tenant_id": self.id, "state": "withdrawing", "limit": 200}
        for one in (await provider.get("/v1/provider/placements", params=query)).json()["items"]:
            order = PlacementOrder(self.id, one["id"])
            await settle_withdrawal(tools.database, order, None, tools.clock.now())
        async with tools.database.system() as session:
            await session.orm.execute(update(Command).values(done_at=tools.clock.now()))
            await session.commit()

    # --- calls of the API: whatever they answer, they may

    async def set_policy(self, territories: list[str] | None, pools: list[str]) -> None:
        wanted = policy(*(self.deployment.pools[one] for one in pools), territories=territories)
        provider = self.deployment.service.provider
        path = f"/v1/provider/tenants/{self.id}/policy"
        answer = await provider.call("PUT", path, json=wanted, headers=_ANY)
        if answer.status_code == 409:
            assert answer.json()["code"] == "plan_required", answer.text
            plan = await made(provider, f"{path}:plan", wanted)
            answer = await provider.post(f"{path}:apply", {"plan_id": plan["id"]})
        assert answer.status_code == 200, answer.text
        self.permitted, self.granted = territories, set(pools)

    async def place(self, where: str) -> None:
        service = self.deployment.service
        answer = await ask_to_place(service, self.tenant, self.deployment.hosts[where])
        if answer.status_code == 202 and answer.json()["state"] == "requested":
            order = await order_of(service, answer.json()["id"])
            await enrol(self.tenant, order.token, request_of(make_key()))

    async def withdraw(self, where: str) -> None:
        provider = self.deployment.service.provider
        query = {"tenant_id": self.id, "host_id": self.deployment.hosts[where], "state": "placed"}
        for one in (await provider.get("/v1/provider/placements", params=query)).json()["items"]:
            await withdraw(self.deployment.service, one["id"])

    async def recover_to(self, where: str) -> None:
        path = f"/v1/vpgs/{self.vpg_id}"
        wanted = {"recovery_site_id": self.sites[where]}
        answer = await self.tenant.call("PUT", path, json={"name": "m", **wanted}, headers=_ANY)
        if answer.json().get("code") == "plan_required":
            plan = await self.tenant.post(f"{path}:plan", wanted)
            if plan.status_code == 201:
                await self.tenant.post(f"{path}:apply", {"plan_id": plan.json()["id"]})

    async def restore(self, where: str) -> None:
        target = {"host_id": self.hosts[where]}
        await self._restore(target)

    async def restore_to_pool(self, where: str) -> None:
        await self._restore({"pool_id": self.deployment.pools[where]})

    async def _restore(self, target: Json) -> Any:
        wanted = {"directory": "/restored", **target}
        return await self.tenant.post(f"/v1/vpgs/{self.vpg_id}:restore", wanted)

    async def move_site(self, where: str, to: str) -> None:
        path, moved = f"/v1/sites/{self.sites[where]}", {"name": where, "territory": to}
        await self.tenant.call("PUT", path, json=moved, headers=_ANY)

    # --- what is allowed now

    def forbids(self, territory: str) -> bool:
        return self.permitted is not None and territory not in self.permitted

    async def check(self) -> None:
        """Nothing of what the service would do or hand out is at a forbidden place."""
        await self._check_streams()
        await self._check_placements()
        await self._check_restores()
        await self._check_groups()

    async def _check_streams(self) -> None:
        tools, tenant_id = self.deployment.service.tools, parse(Kind.TENANT, self.id)
        async with tools.database.tenant(tenant_id) as session:
            doors = await doors_of_tenant(session)
            doors += list((await restore_places(session, 16)).doors)
        bad = [door for door in doors if self.forbids(door.partition(":")[0])]
        assert not bad, f"streams are sent to {bad}, permitted are {self.permitted}"
        async with tools.database.system() as session:
            for place, node_id in self.deployment.nodes.items():
                node = await session.orm.get_one(DataNode, parse(Kind.DATA_NODE, node_id))
                is_served = self.id in await record_versions(session, node)
                assert not (is_served and self.forbids(place)), f"served by the node in {place}"
        nodes = NodeTools(tools.database, tools.sealer, tools.clock)
        async for record in load_records(nodes, [self.id]):
            place = record.store.url.rpartition("/")[2]
            assert not self.forbids(place), f"its journal is in {place}"

    async def _check_placements(self) -> None:
        provider, tools = self.deployment.service.provider, self.deployment.service.tools
        query = {"tenant_id": self.id, "limit": 200}
        found = (await provider.get("/v1/provider/placements", params=query)).json()["items"]
        where = {pool_id: place for place, pool_id in self.deployment.pools.items()}
        for one in found:
            place = where[one["pool_id"]]
            is_there = one["state"] in ("requested", "placed", "failed")
            is_bad = self.forbids(place) or place not in self.granted
            assert not (is_there and is_bad), f"{one['state']} in {place}"
        async with tools.database.tenant(parse(Kind.TENANT, self.id)) as session:
            hosts = await session.orm.scalars(
                select(Host).where(Host.placement_id.is_not(None), Host.state == HostState.ACTIVE)
            )
            for host in hosts:
                assert host.pool_id is not None
                place = where[show(Kind.POOL, host.pool_id)]
                assert not self.forbids(place), f"a certificate is good in {place}"

    async def _check_restores(self) -> None:
        """Neither a new restore nor one that waits for its host brings data to such a place."""
        sites = {one["id"]: one for one in (await self.tenant.get("/v1/sites")).json()["items"]}
        for where, host_id in self.hosts.items():
            answer = await self._restore({"host_id": host_id})
            if self.forbids(sites[self.sites[where]]["territory"]):
                assert answer.json().get("code") == "jurisdiction", f"restored to {where}"
        for where, pool_id in self.deployment.pools.items():
            answer = await self._restore({"pool_id": pool_id})
            if self.forbids(where):
                refusals = ("jurisdiction", "pool_empty", "not_found")
                assert answer.json().get("code") in refusals, f"restored to the pool in {where}"
        await self._check_waiting(sites)

    async def _check_waiting(self, sites: dict[str, Json]) -> None:
        tools, tenant_id = self.deployment.service.tools, parse(Kind.TENANT, self.id)
        async with tools.database.tenant(tenant_id) as session:
            waiting = await session.orm.scalars(
                select(Command).where(
                    Command.kind == CommandKind.RESTORE, Command.done_at.is_(None)
                )
            )
            for one in waiting:
                host = await session.orm.get_one(Host, {"tenant_id": tenant_id, "id": one.subject})
                site = next(s for s in sites.values() if parse(Kind.SITE, s["id"]) == host.site_id)
                if not self.forbids(site["territory"]):
                    continue
                errand = Waiting(
                    Place(tenant_id, one.site_id), one.id, CommandKind.RESTORE, one.subject,
                    one.operation_id, one.created_at,
                )  # fmt: skip
                with pytest.raises(Problem) as refused:
                    await bodies_of(session, errand, tools.sealer)
                assert refused.value.code == "jurisdiction"

    async def _check_groups(self) -> None:
        """A group that names such a place has its alert, and no other has one."""
        sites = {one["id"]: one for one in (await self.tenant.get("/v1/sites")).json()["items"]}
        vpg = (await self.tenant.get(f"/v1/vpgs/{self.vpg_id}")).json()
        named = [vpg[name] for name in ("recovery_site_id", "protected_site_id") if vpg[name]]
        is_bad = any(self.forbids(sites[one]["territory"]) for one in named) or self.forbids("US")
        query = {"code": "jurisdiction.violated", "is_open": "true"}
        alerts = (await self.tenant.get("/v1/alerts", params=query)).json()["items"]
        assert [one["subject"] for one in alerts] == ([self.vpg_id] if is_bad else [])


async def make_world(deployment: Deployment) -> World:
    """A tenant with a protected machine; nothing is restricted yet."""
    service = deployment.service
    tenant = await service.make_tenant()
    world = World(deployment, tenant, await id_of(tenant))
    for place in TERRITORIES:
        site = await made(tenant, "/v1/sites", {"name": place, "territory": place})
        world.sites[place] = site["id"]
        token = await made(tenant, "/v1/join-tokens", {"name": place, "site_id": site["id"]})
        joined = await enrol(tenant, token["token"], request_of(make_key()))
        world.hosts[place] = joined.json()["host_id"]
    source, _ = await join_host(tenant, "source")
    await report(service, tenant, source, machine("m", "vda"))
    vpg = await make_vpg(tenant, "m", (await machine_ids(tenant))["m"])
    world.vpg_id = vpg["id"]
    for node_id in deployment.nodes.values():
        await make_door_at(service, world.id, node_id)
    return world


_place = st.sampled_from(TERRITORIES)
_some = st.lists(_place, unique=True)
_calls = st.one_of(
    st.tuples(st.just("set_policy"), st.one_of(st.none(), _some), _some),
    st.tuples(st.just("place"), _place),
    st.tuples(st.just("withdraw"), _place),
    st.tuples(st.just("recover_to"), _place),
    st.tuples(st.just("restore"), _place),
    st.tuples(st.just("restore_to_pool"), _place),
    st.tuples(st.just("move_site"), _place, _place),
)


async def _play(world: World, calls: list[tuple[Any, ...]]) -> None:
    await world.reset()
    for name, *arguments in calls:
        await getattr(world, name)(*arguments)
    await world.check()


def _property(world: World, examples: int, *, shrinks: bool = True) -> None:
    phases = [Phase.generate, *([Phase.shrink] if shrinks else [])]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    @given(st.lists(_calls, min_size=2, max_size=8))
    def run(calls: list[tuple[Any, ...]]) -> None:
        world.deployment.runner.run(_play(world, calls))

    run()


def test_no_sequence_of_calls_ends_with_data_at_a_forbidden_place(world: World) -> None:
    """C6."""
    _property(world, _EXAMPLES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_sequence_of_calls_ends_so_for_long(world: World) -> None:
    """C6, many more of them."""
    _property(world, 1_000)


def test_the_property_sees_data_that_may_be_anywhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C6's negative control: with a `may_hold` that always says yes it fails."""
    monkeypatch.setattr("app.rights.territory.is_covered", lambda *_: True)
    with pytest.raises(AssertionError):
        _property(world, _EXAMPLES, shrinks=False)


@pytest.mark.parametrize(
    ("part", "calls"),
    [
        ("_check_streams", [("set_policy", ["GB"], [])]),
        (
            "_check_placements",
            [("set_policy", None, ["JP"]), ("place", "JP"), ("set_policy", ["US"], ["JP"])],
        ),
        ("_check_restores", [("set_policy", ["GB"], [])]),
        ("_check_groups", [("recover_to", "US"), ("set_policy", ["GB"], [])]),
    ],
)
def test_each_part_of_the_check_sees_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str, calls: list[tuple[Any, ...]]
) -> None:
    """The same for each part alone: streams, placements, restores, groups' targets."""
    runner = world.deployment.runner
    runner.run(_play(world, calls))
    monkeypatch.setattr("app.rights.territory.is_covered", lambda *_: True)
    runner.run(world.reset())
    for name, *arguments in calls:
        runner.run(getattr(world, name)(*arguments))
    with pytest.raises(AssertionError):
        runner.run(getattr(world, part)())
