"""No endpoint's number of queries depends on how many objects there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from app.checkpoints.identity import checkpoint_id, milliseconds
from app.checkpoints.merging import Taken
from app.checkpoints.state import CheckpointState
from app.kit.ids import Kind, parse
from tests.app.joining import join_host
from tests.app.placing import join_pool, make_pool, place, policy, set_policy
from tests.app.protecting import (
    machine,
    machine_ids,
    make_alert,
    make_operation,
    make_vpg,
    record,
    report,
)
from tests.app.service import Caller, Service
from tests.app.test_isolation import MACHINES, World, ask, make_world, routes_of

pytestmark = pytest.mark.anyio
READ_QUERIES_MAX, CHANGE_QUERIES_MAX = 8, 40
#: An answer that lasts looks again and again; a body that names its tenant fits no other.
_LEFT_OUT = {"GET /v1/events:stream", "POST /v1/recovery-key:export", *MACHINES}
#: The same routes, asked for more.
_VARIANTS = (
    "/v1/machines?is_protected=true",
    "/v1/vpgs?sla=unknown&sync=none&label=app",
    "/v1/vpgs/{vpg_id}/timeline?buckets=500",
    "/v1/vpgs/{vpg_id}/checkpoints?limit=200",
)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are sent meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def _add(service: Service, tenant: Caller, vpg_id: str, number: int) -> None:
    await tenant.post("/v1/sites", {"name": f"site {number}", "territory": "CH"})
    await tenant.post("/v1/service-profiles", {"name": f"profile {number}", "settings": {}})
    await tenant.post("/v1/vpgs", {"name": f"group {number}", "labels": {"app": "x"}})
    await make_operation(service, tenant, f"{number}")
    await make_alert(service, tenant, f"{number}")
    key, now = parse(Kind.VPG, vpg_id), service.tools.clock.now()
    taken = []
    for hours in range(number + 1):
        at = now - timedelta(hours=hours, seconds=number)
        identifier = checkpoint_id(key, milliseconds(at))
        taken.append(Taken(key, identifier, at, at, CheckpointState.COMPLETE))
    await record(service, tenant, *taken)


async def _grant(service: Service, tenant: Caller, pools: list[str], number: int) -> None:
    """One more pool of the provider's, with a host on which the tenant has machines."""
    pools.append(await make_pool(service, f"pool {number}"))
    await set_policy(service, tenant, policy(*pools))
    _, process_id = await place(service, tenant, await join_pool(service, pools[-1], f"{number}"))
    await report(service, tenant, process_id, machine(f"placed {number}", "vda"))


async def _grow(service: Service, tenant: Caller, ids: dict[str, str]) -> None:
    """More of everything, and more machines, on more hosts, in the one group."""
    own_id = (await tenant.get("/v1/tenant")).json()["id"]
    pools = [pool["id"] for pool in (await tenant.get("/v1/pools")).json()["items"]]
    for number in range(5):
        await _add(service, tenant, ids["vpg_id"], number)
        await _grant(service, tenant, pools, number)
        name = f"more {number}"
        host_id, _ = await join_host(tenant, name)
        await report(service, tenant, host_id, machine(name, "vda", "vdb"))
        await tenant.post("/v1/users", {"name": name, "display_name": name, "role": "viewer"})
        await tenant.post("/v1/api-keys", {"name": name, "role": "viewer"})
        await service.provider.post(f"/v1/provider/tenants/{own_id}:enter", {"reason": name})
        wanted = {"name": name, "territory": "CH", "doors": [f"node{number}:7440"]}
        await service.provider.post("/v1/provider/data-nodes", wanted)
    for name, machine_id in (await machine_ids(tenant)).items():
        if name.startswith("more"):
            await tenant.post(f"/v1/vpgs/{ids['vpg_id']}/machines", {"machine_id": machine_id})


@pytest.fixture
async def uneven(service: Service) -> World:
    """Two tenants: one with one object of a kind, the other with many."""
    world = await make_world(service)
    await _grow(service, world.other, world.other_ids)
    return world


async def _count(caller: Caller, route: tuple[str, str], ids: dict[str, str]) -> tuple[int, int]:
    with counted() as seen:
        answer = await ask(caller, route, ids)
    return answer.status_code, len(seen)


def _of_tenants(world: World, *, is_reading: bool) -> list[tuple[str, str]]:
    return [
        (method, path)
        for method, path in routes_of(world.service)
        if (method == "GET") == is_reading
        and f"{method} {path}" not in _LEFT_OUT
        and not path.startswith("/v1/provider/")
    ]


async def test_reading_takes_as_many_queries_for_many_objects_as_for_one(uneven: World) -> None:
    for route in _of_tenants(uneven, is_reading=True):
        few = await _count(uneven.own, route, uneven.own_ids)
        many = await _count(uneven.other, route, uneven.other_ids)
        assert few == many, route
        assert few[0] == 200, route
        assert few[1] <= READ_QUERIES_MAX, route


async def test_changing_takes_as_many_queries_for_many_objects_as_for_one(uneven: World) -> None:
    for route in _of_tenants(uneven, is_reading=False):
        few = await _count(uneven.own, route, uneven.own_ids)
        many = await _count(uneven.other, route, uneven.other_ids)
        assert few == many, route
        assert few[1] <= CHANGE_QUERIES_MAX, route


async def test_the_provider_s_lists_take_as_many_queries_for_many_objects(service: Service) -> None:
    world = await make_world(service)
    routes = [
        (method, path)
        for method, path in routes_of(service)
        if method == "GET" and path.startswith("/v1/provider/")
    ]
    few = [await _count(service.provider, route, world.own_ids) for route in routes]
    await _grow(service, world.own, world.own_ids)
    assert [await _count(service.provider, route, world.own_ids) for route in routes] == few
    assert max(count for _, count in few) <= READ_QUERIES_MAX


async def test_filters_and_zooms_take_as_many_queries_for_many_objects(uneven: World) -> None:
    for path in _VARIANTS:
        counts = []
        for caller, ids in (
            (uneven.own, uneven.own_ids),
            (uneven.other, uneven.other_ids),
        ):
            with counted() as seen:
                answer = await caller.get(path.format(**ids))
            assert answer.status_code == 200, (path, answer.text)
            counts.append(len(seen))
        assert counts[0] == counts[1] <= READ_QUERIES_MAX, path


async def test_making_a_group_takes_as_many_queries_for_many_machines(service: Service) -> None:
    tenant = await service.make_tenant()
    host_id, _ = await join_host(tenant, "hypervisor 1")
    await report(service, tenant, host_id, *(machine(f"m{place}", "vda") for place in range(9)))
    ids = list((await machine_ids(tenant)).values())
    counts = []
    await make_vpg(tenant, "first")  # makes the tenant's key
    for name, members in (("one", ids[:1]), ("many", ids[1:9])):
        with counted() as seen:
            await make_vpg(tenant, name, *members)
        counts.append(len(seen))
    assert counts[0] == counts[1]


async def test_making_a_plain_group_takes_seven_queries(service: Service) -> None:
    tenant = await service.make_tenant()
    await make_vpg(tenant, "first")  # makes the tenant's key
    with counted() as seen:
        answer = await tenant.post("/v1/vpgs", {"name": "plain"}, headers={"Idempotency-Key": "1"})
    assert answer.status_code == 201, answer.text
    assert len(seen) == 7, "\n".join(seen)


async def test_the_count_sees_a_query_for_each_object(service: Service) -> None:
    tenant = await service.make_tenant()
    ids = [(await make_vpg(tenant, name))["id"] for name in ("one", "two")]
    counts = []
    for some in (ids[:1], ids):
        with counted() as seen:
            for vpg_id in some:
                await tenant.get(f"/v1/vpgs/{vpg_id}")
        counts.append(len(seen))
    assert counts[1] > counts[0]
