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

pytestmark = pytest.mark.anyio
_LISTS = (
    "/v1/sites", "/v1/pools", "/v1/hosts", "/v1/join-tokens", "/v1/users", "/v1/api-keys",
    "/v1/machines",
    "/v1/machines?is_protected=true", "/v1/service-profiles", "/v1/vpgs",
    "/v1/vpgs?sla=unknown&sync=none&label=app", "/v1/alerts", "/v1/operations", "/v1/events",
    "/v1/vpgs/{vpg}", "/v1/vpgs/{vpg}/machines", "/v1/vpgs/{vpg}/checkpoints",
    "/v1/vpgs/{vpg}/timeline", "/v1/vpgs/{vpg}/timeline?buckets=500",
)  # fmt: skip


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


async def _count(tenant: Caller, vpg_id: str) -> dict[str, int]:
    counts = {}
    for path in _LISTS:
        with counted() as seen:
            answer = await tenant.get(path.format(vpg=vpg_id))
        assert answer.status_code == 200, (path, answer.text)
        counts[path] = len(seen)
    return counts


async def test_reading_takes_as_many_queries_for_many_objects_as_for_one(service: Service) -> None:
    tenant = await service.make_tenant()
    host_id, _ = await join_host(tenant, "hypervisor 1")
    await report(service, tenant, host_id, *(machine(f"m{place}", "vda") for place in range(9)))
    ids = list((await machine_ids(tenant)).values())
    vpg_id = (await make_vpg(tenant, "shop", ids[0]))["id"]
    pools: list[str] = []
    await _add(service, tenant, vpg_id, 1)
    await _grant(service, tenant, pools, 1)
    few = await _count(tenant, vpg_id)
    for number in (2, 3, 4, 5):
        await _add(service, tenant, vpg_id, number)
        await _grant(service, tenant, pools, number)
    for number in (1, 2, 3):
        await tenant.post(f"/v1/vpgs/{vpg_id}/machines", {"machine_id": ids[number]})
    assert await _count(tenant, vpg_id) == few
    assert max(few.values()) <= 8


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
