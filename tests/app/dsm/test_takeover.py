"""Several managers' processes: one owner, a takeover when it dies, no harm by the one before."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from tests.app.dsm.test_managing import Protected
from tests.servers.dsm import ManagerProcess, Site, door_of, manager, running
from tests.servers.dsm_host import Keeping, SimulatedHost, machine

pytestmark = pytest.mark.anyio


@contextmanager
def processes() -> Iterator[list[ManagerProcess]]:
    """Ended with the block, whatever state they are in."""
    started: list[ManagerProcess] = []
    try:
        yield started
    finally:
        for one in started:
            one.end()


async def start(started: list[ManagerProcess], site: Site, **options: Any) -> ManagerProcess:
    """One more."""
    made = ManagerProcess(site, **options)
    started.append(made)
    await made.started()
    return made


@asynccontextmanager
async def protected(site: Site, *managers: ManagerProcess) -> AsyncIterator[Protected]:
    """A tenant whose host dials these, with a group that wants a checkpoint each second."""
    tenant = await site.service.make_tenant()
    host_id, files = await site.join(tenant, "hypervisor")
    host = site.host(files, *(one.door for one in managers))
    host.machines = [machine("db", "vda")]
    async with running(host):
        world = Protected(site, tenant, host, host_id)
        await world.protect(checkpoint_seconds=1)
        await host.until(lambda: bool(host.obeyed))
        yield world


def epochs(host: SimulatedHost) -> list[int]:
    """Of the commands that it obeyed, in order."""
    return [one.epoch for one in host.obeyed]


async def test_a_killed_owner_s_hosts_have_another_that_goes_on(site: Site) -> None:
    with processes() as started:
        first = await start(started, site)
        async with protected(site, first) as world:
            host = world.host
            second = await start(started, site)
            _, files = await site.join(world.tenant, "relayed")
            relayed = site.host(files, second.door)
            async with running(relayed):
                # Its connection ends in the second process, its manager lives in the first.
                await relayed.until(lambda: bool(relayed.welcomes))
                before = max(epochs(host))
                host.doors = [first.door, second.door]
                first.signal(signal.SIGKILL)
                await host.until(lambda: max(epochs(host)) > before)
                await relayed.until(lambda: relayed.welcomes[-1].epoch > before)
                assert epochs(host) == sorted(epochs(host))
            second.signal(signal.SIGTERM)
            assert await asyncio.to_thread(second.process.wait, 60) == 0


async def test_an_owner_that_was_stopped_and_goes_on_commands_nobody(site: Site) -> None:
    with processes() as started:
        first = await start(started, site)
        async with protected(site, first) as world:
            second = await start(started, site)
            host = world.host
            host.doors = [second.door]
            assert host.connection is not None
            await host.connection.close()
            # Its connection ends in the second process, its commands come from the first.
            count, before = len(host.obeyed), max(epochs(host))
            await host.until(lambda: len(host.obeyed) > count)
            first.signal(signal.SIGSTOP)
            await host.until(lambda: max(epochs(host)) > before)
            first.signal(signal.SIGCONT)
            count = len(host.obeyed)
            await host.until(lambda: len(host.obeyed) >= count + 3)
            assert before not in epochs(host)[count:]
            assert epochs(host) == sorted(epochs(host))


async def test_a_released_lease_is_taken_over_at_once(site: Site) -> None:
    async with manager(site, lease_gone_seconds=90, lease_act_seconds=60) as second:
        tenant = await site.service.make_tenant()
        _, files = await site.join(tenant, "hypervisor")
        host = site.host(files, door_of(second))
        async with running(host):
            await host.until(lambda: bool(host.welcomes))
            async with manager(site, lease_gone_seconds=90, lease_act_seconds=60) as first:
                _ = first
                await asyncio.sleep(1)
            await host.until(lambda: bool(host.welcomes), seconds=60)
            assert host.failures == []


async def test_an_owner_that_cannot_renew_is_silent_before_another_may_take_over(
    site: Site,
) -> None:
    async with manager(site) as process:
        tenant = await site.service.make_tenant()
        host_id, files = await site.join(tenant, "hypervisor")
        host = site.host(files, door_of(process))
        host.machines = [machine("db", "vda")]
        async with running(host):
            world = Protected(site, tenant, host, host_id)
            await world.protect(checkpoint_seconds=1)
            await host.until(lambda: bool(host.obeyed))

            async def cut() -> None:
                return None

            process.parts.lease.renew = cut  # type: ignore[method-assign]
            cut_at = time.monotonic()
            await asyncio.sleep(6)
            late = [one for one in host.obeyed if one.at > cut_at + 4.0]
            assert late == []
            assert not process.parts.lease.may_act()


async def test_a_rebuilt_database_s_epoch_rises_above_what_hosts_have_seen(site: Site) -> None:
    async with manager(site) as process:
        tenant = await site.service.make_tenant()
        _, files = await site.join(tenant, "hypervisor")
        host = site.host(files, door_of(process))
        host.keeping = Keeping(epoch=37, number=5)
        async with running(host):
            await host.until(lambda: bool(host.welcomes))
            assert host.welcomes[0].epoch == 38
        liar = site.host(files, door_of(process))
        liar.keeping = Keeping(epoch=(1 << 62), number=5)
        async with running(liar):
            await liar.until(lambda: bool(liar.failures))
            assert liar.welcomes == []


@pytest.mark.soak
@pytest.mark.alone
async def test_with_the_product_s_intervals_a_takeover_takes_less_than_ten_seconds(
    site: Site,
) -> None:
    site.options = {"data_doors": ("data.example:443",)}
    with processes() as started, contextlib.ExitStack():
        first = await start(started, site)
        async with protected(site, first) as world:
            second = await start(started, site)
            host = world.host
            host.doors = [first.door, second.door]
            began = time.monotonic()
            first.signal(signal.SIGKILL)
            await host.until(lambda: max(epochs(host)) > 1)
            took = next(one.at for one in host.obeyed if one.epoch > 1) - began
            assert took < 10
