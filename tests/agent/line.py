"""A stream in this process, a real ingest in another, and a proxy between: real TLS throughout."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from host_agent.control.means import RealClock, RealRandom, ThreadOffload
from host_agent.control.state_dir import KeyStore, StateDir, load_group_key
from host_agent.stream import link
from host_agent.stream.parts import Buckets, Means, StreamSettings
from host_agent.stream.ports import Link, Tap
from host_agent.stream.stream import Doors, Stream
from host_agent.wire.names import Identity
from infra.demo.processes import Processes, free_port, tool
from infra.demo.recovery import Safe
from infra.dev_keys import DevSetup, write_dev_setup
from tests.agent.proxy import Proxy
from tests.integration.site import GROUP, TENANT
from tests.stream.fake_tap import FakeTap

HOST = "host1"


@dataclass
class Line:
    """Everything between a disk in memory and its journal in a folder."""

    setup: DevSetup
    processes: Processes
    tap: FakeTap
    proxy: Proxy
    stream: Stream

    async def until(self, what: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            stream = self.stream
            assert time.monotonic() < deadline, (
                f"phase {stream.phase}, stored {stream.stored}, head {self.tap.ring.head}, "
                f"failure {stream.failure}, alert {stream.decider.alert}"
            )
            await asyncio.sleep(0.01)

    async def drained(self, seconds: float = 20.0) -> None:
        """All is recorded, stored and given back."""
        tap = self.tap
        await self.until(
            lambda: tap.state.name == "RECORDING" and tap.ring.freed == tap.ring.head, seconds
        )

    def restored(self, folder: Path) -> bytes:
        """The newest moment, through `holdfast restore export`."""
        key = self.setup.path("tenant.key")
        safe = Safe(self.setup.store_url, key, self.processes, TENANT, GROUP)
        return safe.export("latest-write", folder).image.read_bytes()


def identity() -> Identity:
    return Identity(TENANT, GROUP, HOST)


def make_stream(setup: DevSetup, tap: FakeTap, port: int, state: Path) -> Stream:
    """A stream with the agent's own means, to an ingest at `port`."""
    key = load_group_key(setup.path(f"{GROUP}.group.key"), TENANT, GROUP)
    keys = KeyStore(StateDir(state).group(GROUP), key, identity())
    names = (setup.path(name) for name in ("ca.crt", "agent.crt", "agent.key"))
    credentials = link.Credentials(*names)

    async def dial(address: int) -> Link:
        return await link.connect(("127.0.0.1", port), credentials, "localhost")

    async def connect_tap() -> Tap:
        return tap.connection()

    settings = StreamSettings(identity(), "test", commit_seconds=0.2, silence_seconds=4.0)
    means = Means(RealClock(), RealRandom(), ThreadOffload())
    buckets = Buckets(None, None, time.monotonic())
    return Stream(settings, Doors(connect_tap, dial, 1, keys), means, buckets)


def start_ingest(setup: DevSetup, processes: Processes) -> None:
    """Start it and wait until it listens."""
    argv: list[str | Path] = [tool("holdfast"), "ingest", "--config", setup.path("ingest.toml")]
    process = processes.start("ingest", argv)
    deadline = time.monotonic() + 30
    while "event=listening" not in process.log.read_text():
        process.require()
        assert time.monotonic() < deadline, process.tail()
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def made_line(folder: Path) -> AsyncIterator[Line]:
    """Everything started; ended with the block."""
    (folder / "logs").mkdir()
    setup = DevSetup(folder / "site", tenant=TENANT, host=HOST, group=GROUP, port=free_port())
    write_dev_setup(setup, datetime.now(UTC))
    with setup.path("ingest.toml").open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write("commit_seconds_min = 0.1\nprobe_seconds = 0.3\n" + text)
    processes, proxy = Processes(folder / "logs"), Proxy(setup.port)
    tap = FakeTap(ring_bytes=8 << 20)
    try:
        start_ingest(setup, processes)
        await proxy.start()
        stream = make_stream(setup, tap, proxy.port, folder / "state")
        task = asyncio.create_task(stream.run())
        try:
            yield Line(setup, processes, tap, proxy, stream)
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await proxy.stop()
    finally:
        processes.stop_all()
