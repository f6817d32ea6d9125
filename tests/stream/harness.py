"""A stream between a fake tap and a fake ingest, with short intervals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from host_agent.stream.errors import NotAttached
from host_agent.stream.parts import Buckets, Means, StreamSettings
from host_agent.stream.ports import DataKey, Result
from host_agent.stream.stream import Doors, Stream
from host_agent.wire.keys import make_data_key, open_with_group
from tests.stream.fake_ingest import GROUP_KEY, IDENTITY, FakeIngest
from tests.stream.fake_tap import FakeTap, TapConnection


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **given: Any) -> None:
        asyncio.run(test(*args, **given))

    return run


class Clock:
    """The event loop's: real in most tests, simulated in some."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ns(self) -> int:
        return int(self.monotonic() * 1e9)


class Randomness:
    """Repeatable."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return 0.0


class Inline:
    """No threads: a call runs where it is, after others had their turn."""

    async def __call__(self, function: Callable[[], Result]) -> Result:
        await asyncio.sleep(0)
        return function()


class MemoryKeys:
    """Keys that survive the stream but not the test."""

    def __init__(self) -> None:
        self.kept: dict[bytes, DataKey] = {}

    def find(self, generation: bytes) -> DataKey | None:
        return self.kept.get(generation)

    def make(self, generation: bytes) -> DataKey:
        key, wrapped = make_data_key(GROUP_KEY, IDENTITY, generation)
        self.kept[generation] = DataKey(key, wrapped)
        return self.kept[generation]

    def unwrap(self, generation: bytes, wrapped: bytes) -> bytes:
        return open_with_group(wrapped, GROUP_KEY, IDENTITY, generation)

    def keep_only(self, generation: bytes) -> None:
        self.kept = {generation: self.kept[generation]}


@dataclass
class Bench:
    """Everything around one stream. `stream` is replaced by `restart`."""

    tap: FakeTap
    ingest: FakeIngest
    replication: float | None = None
    sync: float | None = None
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    settings: StreamSettings = field(
        default_factory=lambda: StreamSettings(
            IDENTITY, "test", commit_seconds=0.05, silence_seconds=0.6, idle_wait_ms=200
        )
    )
    attached: bool = True
    random: Randomness = field(default_factory=Randomness)

    def __post_init__(self) -> None:
        self._stream: Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self.connections: list[TapConnection] = []

    @property
    def stream(self) -> Stream:
        """The stream that runs, or will."""
        if self._stream is None:
            self._stream = self._make()
        return self._stream

    def _make(self) -> Stream:
        means = Means(Clock(), self.random, Inline())
        buckets = Buckets(self.replication, self.sync, Clock().monotonic())
        doors = Doors(self._connect_tap, self.ingest.dial, 1, self.keys)
        return Stream(self.settings, doors, means, buckets)

    async def _connect_tap(self) -> TapConnection:
        if not self.attached:
            raise NotAttached("No disk is attached.")
        self.connections.append(self.tap.connection())
        return self.connections[-1]

    def start(self) -> None:
        self._task = asyncio.create_task(self.stream.run())

    @property
    def failed(self) -> BaseException | None:
        """The defect that ended the stream's task, if one did."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def kill(self) -> None:
        """As SIGKILL would: no goodbye."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def restart(self) -> None:
        """Killed, and started again from what the tap, the keys and ingest have."""
        await self.kill()
        self._stream = None
        self.start()

    async def until(self, what: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for it; fails with the stream's state."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + seconds
        while not what():
            assert self._task is not None
            if self._task.done():
                self._task.result()
            stream = self.stream
            assert clock.time() < deadline, (
                f"phase {stream.phase}, stored {stream.stored}, head {self.tap.ring.head}, "
                f"state {self.tap.state}, failure {stream.failure}, alert {stream.decider.alert}"
            )
            await asyncio.sleep(0.005)

    @property
    def is_drained(self) -> bool:
        """All is recorded, stored and given back."""
        tap = self.tap
        return (
            tap.state.name == "RECORDING"
            and bool(self.ingest.generations)
            and self.ingest.newest.name == tap.ring.generation
            and self.ingest.newest.stored == tap.ring.head == tap.ring.freed
        )

    async def drained(self) -> None:
        await self.until(lambda: self.is_drained)

    def check_equal(self) -> None:
        """The journal makes the source's disk."""
        assert self.ingest.image(self.tap.disk_bytes) == bytes(self.tap.disk)


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    """The stream runs inside the block."""
    bench.start()
    try:
        yield bench
    finally:
        await bench.kill()
