"""Placements and managers: a host is told over its owner's connection, and a tenant's manager
drives exactly the hosts that run its machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.dsm.process import DsmProcess
from app.kit.ids import Kind, show
from host_agent.wire import control
from tests.app.dsm.test_managing import eventually, get
from tests.app.placing import (
    Json,
    ask_to_place,
    id_of,
    made,
    make_pool,
    placement,
    policy,
    set_policy,
    withdraw,
)
from tests.app.protecting import machine_ids, make_vpg
from tests.app.service import Caller
from tests.servers.dsm import Site, door_of, running
from tests.servers.dsm_host import SimulatedHost, machine

pytestmark = pytest.mark.anyio


@dataclass
class Cloud:
    """A provider's host, simulated with the tenants' processes on it."""

    site: Site
    process: DsmProcess
    stack: AsyncExitStack
    id: str = ""
    pool_id: str = ""
    owner: SimulatedHost | None = None
    placed: dict[str, tuple[str, SimulatedHost]] = field(default_factory=dict)

    async def join(self, name: str) -> Cloud:
        """It joins a pool of its own and connects."""
        service = self.site.service
        self.pool_id = await make_pool(service, f"pool of {name}")
        wanted = {"name": name, "pool_id": self.pool_id}
        token = (await made(service.provider, "/v1/provider/join-tokens", wanted))["token"]
        self.id, files = await self.site.enrol(token)
        self.owner = self.site.host(files, door_of(self.process))
        await self.stack.enter_async_context(running(self.owner))
        return self

    async def place(self, tenant: Caller, *machines: str) -> str:
        """The placement of a tenant whose process then has these machines."""
        tenant_id = await id_of(tenant)
        before = len(self.orders(control.Place, tenant_id))
        answer = await ask_to_place(self.site.service, tenant, self.id)
        assert answer.status_code == 202, answer.text
        order = await self.told(control.Place, tenant_id, before)
        host_id, files = await self.site.enrol(order.token)
        host = self.site.host(files, door_of(self.process))
        host.machines = [machine(name, "vda") for name in machines]
        self.placed[order.tenant] = host_id, host
        await self.stack.enter_async_context(running(host))
        await host.until(lambda: bool(host.welcomes))
        return str(answer.json()["id"])

    def orders(self, kind: type[Any], tenant_id: str) -> list[Any]:
        """What the host was told of this kind about the tenant."""
        assert self.owner is not None
        bodies = [one.body for one in self.owner.obeyed]
        return [one for one in bodies if isinstance(one, kind) and one.tenant == tenant_id]

    async def told(self, kind: type[Any], tenant_id: str, before: int = 0) -> Any:
        """The next such order after so many."""
        assert self.owner is not None
        await self.owner.until(lambda: len(self.orders(kind, tenant_id)) > before)
        return self.orders(kind, tenant_id)[-1]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def driven(process: DsmProcess, tenant: Caller) -> set[str]:
    """The hosts that the tenant's managers drive: those that they know, and that are connected."""
    tenant_id = await id_of(tenant)
    return {
        show(Kind.HOST, host_id)
        for place, manager in process.parts.fleet.managers.items()
        if show(Kind.TENANT, place.tenant_id) == tenant_id
        for host_id in manager.hosts
        if host_id in manager.links
    }


async def test_a_tenant_is_placed_protected_and_withdrawn(
    site: Site, process: DsmProcess, stack: AsyncExitStack
) -> None:
    cloud = await Cloud(site, process, stack).join("cloud-1")
    tenant = await site.service.make_tenant()
    await set_policy(site.service, tenant, policy(cloud.pool_id))
    placement_id = await cloud.place(tenant, "db")
    assert (await placement(site.service, placement_id))["state"] == "placed"
    _, host = cloud.placed[await id_of(tenant)]
    ids = await eventually(lambda: machine_ids(tenant), lambda found: "db" in found)
    vpg = await make_vpg(tenant, "erp", ids["db"], checkpoint_seconds=1)
    await host.until(lambda: len(host.obeyed) >= 2)
    shown = await eventually(
        lambda: get(tenant, f"/v1/vpgs/{vpg['id']}"), lambda one: one["recoverable_at"] is not None
    )
    assert (shown["lifecycle"], shown["link"]) == ("protecting", "connected")

    answer = await withdraw(site.service, placement_id)
    assert answer.status_code == 202, answer.text
    await cloud.told(control.Withdraw, await id_of(tenant))

    async def state() -> Json:
        return await placement(site.service, placement_id)

    await eventually(state, lambda one: one["state"] == "withdrawn")
    # Its live connection ends, and it does not come in again.
    await host.until(lambda: host.connection is None, seconds=30)
    seen = len(host.welcomes)
    await asyncio.sleep(1)
    assert len(host.welcomes) == seen
    # It may be placed there again, as another process.
    again = await cloud.place(tenant, "db")
    assert again != placement_id


async def test_a_host_tells_why_a_placed_tenant_s_process_cannot_start(
    site: Site, process: DsmProcess, stack: AsyncExitStack
) -> None:
    cloud, other = [await Cloud(site, process, stack).join(f"cloud-{n}") for n in (1, 2)]
    assert cloud.owner is not None
    assert other.owner is not None
    tenant = await site.service.make_tenant()
    tenant_id = await id_of(tenant)
    await set_policy(site.service, tenant, policy(cloud.pool_id, other.pool_id))
    answer = await ask_to_place(site.service, tenant, cloud.id)
    order = await cloud.told(control.Place, tenant_id)

    async def state() -> Json:
        return await placement(site.service, answer.json()["id"])

    said: control.Details = {
        "code": "enrolment_failed",
        "message": "The token has run out.",
        "hint": "Again.",
    }
    event = control.Event(control.PLACEMENT_FAILED, tenant_id, 1, said)
    for owner in (other.owner, cloud.owner):
        await owner.until(lambda owner=owner: bool(owner.welcomes))  # type: ignore[misc]
    # What a host says of a tenant that is placed on another is nothing.
    await other.owner.say(event)
    await other.owner.say(control.Event(control.PLACEMENT_FAILED, "ten_x", 1, said))
    await asyncio.sleep(1)
    assert (await state())["state"] == "requested"
    await cloud.owner.say(event)
    shown = await eventually(state, lambda one: one["state"] == "failed")
    assert shown["failure"] == said
    # It goes on trying: once it has joined, it is placed.
    host_id, _ = await site.enrol(order.token)
    shown = await state()
    assert (shown["state"], shown["failure"], host_id[:5]) == ("placed", None, "host_")
    await cloud.owner.say(event)
    await asyncio.sleep(1)
    assert (await state())["state"] == "placed"


async def test_a_host_that_is_not_there_fails_a_placement_which_is_asked_for_again(
    site: Site, process: DsmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.dsm.intake._PATIENCE_DEFAULT_SECONDS", 0.5)
    service = site.service
    async with AsyncExitStack() as stack:
        cloud = await Cloud(site, process, stack).join("cloud-1")
        assert cloud.owner is not None
        await cloud.owner.until(lambda: bool(cloud.owner and cloud.owner.welcomes))
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(cloud.pool_id))
    placement_id = (await ask_to_place(service, tenant, cloud.id)).json()["id"]

    async def state() -> Json:
        return await placement(service, placement_id)

    failed = await eventually(state, lambda one: one["state"] == "failed")
    assert failed["failure"]["code"] == "host_unreachable"
    async with running(cloud.owner):
        answer = await ask_to_place(service, tenant, cloud.id)
        assert (answer.json()["id"], answer.json()["state"]) == (placement_id, "requested")
        order = await cloud.told(control.Place, await id_of(tenant))
        await site.enrol(order.token)
        assert (await state())["state"] == "placed"


async def test_a_manager_drives_exactly_the_hosts_that_run_its_tenant_s_machines(
    site: Site, process: DsmProcess, stack: AsyncExitStack
) -> None:
    """C4: A has one host and a part of cloud 1, B has two hosts and a part of both clouds; what
    their managers drive follows each placement.
    """
    service = site.service
    a, b = [await service.make_tenant(name) for name in ("A", "B")]
    clouds = [await Cloud(site, process, stack).join(f"cloud-{number}") for number in (1, 2)]
    wanted: dict[str, set[str]] = {"A": set(), "B": set()}
    for tenant, name, count in ((a, "A", 1), (b, "B", 2)):
        for number in range(count):
            host_id, files = await site.join(tenant, f"{name}-{number}")
            await stack.enter_async_context(running(site.host(files, door_of(process))))
            wanted[name].add(host_id)
        await set_policy(service, tenant, policy(*(cloud.pool_id for cloud in clouds)))

    async def check() -> None:
        for tenant, name in ((a, "A"), (b, "B")):
            expected = wanted[name]
            await eventually(
                lambda one=tenant: driven(process, one),  # type: ignore[misc]
                lambda found, expected=expected: found == expected,  # type: ignore[misc]
            )

    await check()
    placements = {}
    for tenant, name, cloud in ((a, "A", clouds[0]), (b, "B", clouds[0]), (b, "B", clouds[1])):
        placements[name, cloud.id] = await cloud.place(tenant, "m")
        wanted[name].add(cloud.placed[await id_of(tenant)][0])
        await check()
    for name, cloud, tenant in (("B", clouds[0], b), ("A", clouds[0], a)):
        assert (await withdraw(service, placements[name, cloud.id])).status_code == 202
        wanted[name].remove(cloud.placed[await id_of(tenant)][0])
        await check()
    # The provider's own manager drives the owners' connections, and no tenant's process.
    owners = {
        show(Kind.HOST, host_id)
        for place, manager in process.parts.fleet.managers.items()
        if show(Kind.TENANT, place.tenant_id) == "ten_00000000000000000000000001"
        for host_id in manager.hosts
    }
    assert owners == {cloud.id for cloud in clouds}
