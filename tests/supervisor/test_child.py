"""A tenant's process from inside: what comes while its service still begins is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest

from host_agent.wire.serving import ServingRecord
from tests.servers.datanode import Deployment
from workers.ingest.tls import ServerIdentity
from workers.supervisor import child
from workers.supervisor.channel import Channel, make_pair
from workers.supervisor.kinds import SERVICES
from workers.supervisor.port import ServiceStart

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Slow:
    """A service that begins when it is told to, and keeps what happens to it."""

    def __init__(self) -> None:
        self.may_begin = asyncio.Event()
        self.happened: list[Any] = []

    async def open_service(self, start: ServiceStart) -> Slow:
        await self.may_begin.wait()
        self.happened.append(("began", start.record.version))
        return self

    def take(self, connected: socket.socket, address: str) -> None:
        connected.close()
        self.happened.append(("took", address))

    def change(self, record: ServingRecord) -> None:
        self.happened.append(("changed", record.version))

    def renew(self, identity: ServerIdentity) -> None:
        self.happened.append(("renewed", identity.certificate))

    def status(self) -> dict[str, object]:
        return {}

    def facts(self) -> list[dict[str, object]]:
        return []

    async def stop(self) -> None:
        self.happened.append("stopped")


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    made = Slow()
    module = ModuleType("slow")
    module.open_service = made.open_service  # type: ignore[attr-defined]
    monkeypatch.setitem(SERVICES, "slow", "slow")
    monkeypatch.setitem(sys.modules, "slow", module)
    return made


async def test_what_comes_before_the_service_is_there_is_not_lost(
    deployment: Deployment, slow: Slow
) -> None:
    ours, theirs = make_pair()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    supervisor = Channel(ours, lambda message, _: told.put_nowait(message), lambda: None)
    running = asyncio.create_task(child._run(theirs))
    tenant = deployment.tenant()

    def record(version: int) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(deployment.record(tenant, version))
        return found

    identity = {"certificate": "first", "key": "k"}
    start = {"service": "slow", "record": record(1), "is_store_probed": True, **identity}
    supervisor.send({"type": "start", **start})
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(70)]
        for near, _ in pairs:
            stack.callback(near.close)
        for version in (2, 3):
            supervisor.send({"type": "record", "record": record(version)})
        supervisor.send({"type": "identity", "certificate": "second", "key": "k"})
        for number, (_, far) in enumerate(pairs):
            supervisor.send({"type": "take", "address": f"a:{number}"}, far)
        async with asyncio.timeout(30):
            while (await told.get())["type"] != "here":
                pass
            # Too many wait: the last ones are closed, and so everything before them was read.
            await asyncio.get_running_loop().run_in_executor(None, pairs[-1][0].recv, 1)
            slow.may_begin.set()
            while (await told.get())["type"] != "ready":
                pass
            supervisor.send({"type": "record", "record": record(4)})
            while ("changed", 4) not in slow.happened:
                await asyncio.sleep(0.01)
            supervisor.close()
            assert await running == 0
    took = [f"a:{number}" for number in range(64)]
    assert slow.happened[:3] == [("began", 1), ("changed", 3), ("renewed", "second")]
    assert [one[1] for one in slow.happened[3:67]] == took
    assert slow.happened[67:] == [("changed", 4), "stopped"]
