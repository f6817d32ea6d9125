"""A manager and its hosts: from an inventory to checkpoints that the API shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.dsm.process import DsmProcess
from tests.app.protecting import machine_ids, make_vpg
from tests.app.service import Caller
from tests.servers.dsm import Site, door_of, manager, running
from tests.servers.dsm_host import SimulatedHost, machine

pytestmark = pytest.mark.anyio


async def eventually(
    ask: Callable[[], Any], holds: Callable[[Any], bool], seconds: float = 60
) -> Any:
    """What `ask` answers as soon as it holds; AssertionError with the last answer."""
    last = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                last = await ask()
                if holds(last):
                    return last
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"still {last!r}") from None


async def get(tenant: Caller, path: str) -> dict[str, Any]:
    """An answer of the API."""
    answer = await tenant.get(path)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


class Protected:
    """A tenant with a connected host and a group on it."""

    def __init__(self, site: Site, tenant: Caller, host: SimulatedHost, host_id: str) -> None:
        self.site, self.tenant, self.host, self.host_id = site, tenant, host, host_id
        self.vpg: dict[str, Any] = {}

    async def protect(self, **settings: Any) -> None:
        """Make a group of the host's machine, once the manager has told of it."""
        ids = await eventually(lambda: machine_ids(self.tenant), lambda found: "db" in found)
        self.vpg = await make_vpg(self.tenant, "erp", ids["db"], **settings)
        await self.host.until(lambda: self.host.keeping.assignment is not None)

    async def shown(self) -> dict[str, Any]:
        """The group as the API shows it."""
        return await get(self.tenant, f"/v1/vpgs/{self.vpg['id']}")


@pytest.fixture
async def world(site: Site, process: DsmProcess) -> AsyncIterator[Protected]:
    tenant = await site.service.make_tenant()
    host_id, files = await site.join(tenant, "hypervisor")
    host = site.host(files, door_of(process))
    host.machines = [machine("db", "vda")]
    async with running(host):
        yield Protected(site, tenant, host, host_id)


async def test_from_an_inventory_to_checkpoints_of_a_protected_group(world: Protected) -> None:
    await world.protect(checkpoint_seconds=1)
    kept = world.host.keeping.assignment
    assert kept is not None
    assert [group.vpg for group in kept.groups] == [world.vpg["id"]]
    assert kept.doors == ["data.example:443"]
    await world.host.until(lambda: len(world.host.obeyed) >= 3)
    shown = await eventually(world.shown, lambda vpg: vpg["recoverable_at"] is not None)
    assert (shown["lifecycle"], shown["sync"], shown["link"]) == (
        "protecting", "in_sync", "connected",
    )  # fmt: skip
    numbers = [(one.epoch, one.number) for one in world.host.obeyed]
    assert numbers == sorted(set(numbers))
    assert world.host.refused == []
    await world.host.until(lambda: len(world.host.taken) >= 3)


async def test_a_tagged_checkpoint_is_complete_when_the_journal_has_it(world: Protected) -> None:
    await world.protect(checkpoint_seconds=3600, rpo_seconds=3600)
    await eventually(world.shown, lambda vpg: vpg["lifecycle"] == "protecting")
    asked = await world.tenant.post(
        f"/v1/vpgs/{world.vpg['id']}/checkpoints", {"tag": "before the upgrade"}
    )
    assert asked.status_code == 202, asked.text
    path = f"/v1/operations/{asked.json()['id']}"
    done = await eventually(
        lambda: get(world.tenant, path), lambda op: op["state"] in ("succeeded", "failed")
    )
    assert done["state"] == "succeeded", done
    assert done["created_at"] < done["started_at"] < done["finished_at"]
    listed = await get(world.tenant, f"/v1/vpgs/{world.vpg['id']}/checkpoints")
    (found,) = [one for one in listed["items"] if one["tag"] == "before the upgrade"]
    assert found["state"] == "complete"
    assert [one.body.tag for one in world.host.obeyed if one.body.tag] == ["before the upgrade"]


async def test_pausing_stops_checkpoints_and_a_sync_is_forced(world: Protected) -> None:
    await world.protect(checkpoint_seconds=1)
    host = world.host
    await host.until(lambda: bool(host.obeyed))
    version = host.keeping.assignment.version if host.keeping.assignment else 0
    paused = await world.tenant.post(f"/v1/vpgs/{world.vpg['id']}:pause")
    assert paused.status_code == 200, paused.text

    def is_paused() -> bool:
        kept = host.keeping.assignment
        return kept is not None and kept.version > version and kept.groups[0].state == "paused"

    await host.until(is_paused)
    resumed = await world.tenant.post(f"/v1/vpgs/{world.vpg['id']}:resume")
    assert resumed.status_code == 200, resumed.text
    asked = await world.tenant.post(f"/v1/vpgs/{world.vpg['id']}:force-sync", {})
    assert asked.status_code == 202, asked.text
    path = f"/v1/operations/{asked.json()['id']}"
    done = await eventually(lambda: get(world.tenant, path), lambda op: op["state"] != "queued")
    done = await eventually(
        lambda: get(world.tenant, path), lambda op: op["state"] not in ("queued", "running")
    )
    assert done["state"] == "succeeded", done
    assert any(one.kind == "force_sync" for one in host.obeyed)


async def test_a_host_that_falls_silent_is_down_and_its_return_clears_the_alert(
    site: Site,
) -> None:
    tenant = await site.service.make_tenant()
    host_id, files = await site.join(tenant, "hypervisor")

    async def alerts() -> list[str]:
        found = await get(tenant, "/v1/alerts")
        return [one["code"] for one in found["items"] if one["cleared_at"] is None]

    async def health() -> tuple[str, str | None]:
        shown = await get(tenant, f"/v1/hosts/{host_id}")
        return shown["health"], shown["health_reason"]

    assert await health() == ("unknown", None)
    async with manager(site, heartbeat_seconds=0.5) as process:
        host = site.host(files, door_of(process))
        async with running(host):
            await host.until(lambda: bool(host.welcomes))
            await eventually(alerts, lambda codes: codes == [])
            await eventually(health, lambda told: told == ("up", None))
        await eventually(alerts, lambda codes: codes == ["host.down"])
        assert await health() == ("down", "silent")
        (listed,) = (await get(tenant, "/v1/hosts"))["items"]
        assert listed == await get(tenant, f"/v1/hosts/{host_id}")
        async with running(host):
            await eventually(alerts, lambda codes: codes == [])
            assert await health() == ("up", None)


async def test_what_does_not_change_is_written_once(world: Protected, process: DsmProcess) -> None:
    await world.protect(checkpoint_seconds=3600, rpo_seconds=3600)
    await eventually(world.shown, lambda vpg: vpg["lifecycle"] == "protecting")
    await asyncio.sleep(2)
    written = process.metrics.row_writes._value.get()
    received = process.metrics.received._value.get()
    async with asyncio.timeout(60):
        while process.metrics.received._value.get() < received + 6:
            await asyncio.sleep(0.1)
    assert process.metrics.row_writes._value.get() == written
    world.host.gap_reason = "network"
    await world.host.beat()
    await eventually(world.shown, lambda vpg: vpg["gap_reason"] == "network")
    assert process.metrics.row_writes._value.get() == written + 1
