"""A host: disks, the tap's and the agent's processes, what survives of each, and guests."""

from __future__ import annotations

import asyncio
import contextvars
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from host_agent.stream.errors import NotAttached, TapGone
from host_agent.stream.parts import Buckets, Means, SpoolSettings, StreamSettings
from host_agent.stream.ports import DataKey, Result, SyncStep
from host_agent.stream.stream import Doors, Stream
from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import GroupKey, make_data_key, open_with_group
from host_agent.wire.names import Identity
from host_agent.wire.record import Op
from tests.sim.history import History
from tests.sim.loop import Process, SimLoop
from tests.sim.net import AgentLink, Network
from tests.sim.ring import Ring, Shape
from tests.sim.tap import Kept, Tap, TapMeans
from tests.sim.tapdoor import ComparingConnection, TapConnection

START_NS = 1_767_225_600_000_000_000
SECTOR = 512


class WallClock:
    """A machine's clock, which may be wrong; its monotonic time never is."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._offset = 0.0
        self._frozen: float | None = None

    def monotonic(self) -> float:
        return self._loop.time()

    def wall_ns(self) -> int:
        at = self._loop.time() if self._frozen is None else self._frozen
        return START_NS + int((at + self._offset) * 1e9)

    def jump(self, seconds: float) -> None:
        """Set it wrong."""
        self._offset += seconds

    def freeze(self) -> None:
        """Let it stand."""
        self._frozen = self._loop.time()

    def mend(self) -> None:
        """Right again, in one step."""
        self._frozen, self._offset = None, 0.0


class SeededRandom:
    """The stream's port for randomness."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)

    def fraction(self) -> float:
        return self._rng.random()


class Keyring:
    """Data keys in the agent's state directory: durable, and copied with it."""

    def __init__(self, group_key: GroupKey, identity: Identity) -> None:
        self.group_key, self.identity = group_key, identity
        self.kept: dict[bytes, DataKey] = {}

    def find(self, generation: bytes) -> DataKey | None:
        return self.kept.get(generation)

    def make(self, generation: bytes) -> DataKey:
        self.kept[generation] = DataKey(*make_data_key(self.group_key, self.identity, generation))
        return self.kept[generation]

    def unwrap(self, generation: bytes, wrapped: bytes) -> bytes:
        return open_with_group(wrapped, self.group_key, self.identity, generation)

    def keep_only(self, generation: bytes) -> None:
        self.kept = {generation: self.kept[generation]}


@dataclass(frozen=True)
class Plan:
    """What a host is like. Seconds, bytes."""

    name: str
    identity: Identity
    shape: Shape
    commit_seconds: float
    rate: float | None
    sync_rate: float | None
    checkpoint_seconds: float
    read_seconds: float
    spool_kib: int
    addresses: tuple[str, ...]
    servers: tuple[str, ...]


@dataclass
class Surroundings:
    """What all hosts share. `rng` makes a random source by its purpose."""

    loop: SimLoop
    net: Network
    count: Callable[[str], None]
    trace: Callable[..., None]
    rng: Callable[[str], random.Random]
    on_freed: Callable[[Machine, bytes, int], None]
    group_key: Callable[[Identity], GroupKey]
    folder: Path


@dataclass
class Machine:
    """One host. Its tap and agent start and die apart from each other."""

    plan: Plan
    around: Surroundings
    history: History = field(init=False)
    stream: Stream | None = None
    agent: Process | None = None
    tap: Tap | None = None
    ring: Ring | None = None
    opener: TapConnection | None = None
    lives: int = 0
    serving: asyncio.Task[SyncStep] | None = None

    def __post_init__(self) -> None:
        loop, name = self.around.loop, self.plan.name
        self.clock = WallClock(loop)
        sizes = list(self.plan.shape.disks.values())
        self.disks = [bytearray(size) for size in sizes]
        self.durable = [bytes(size) for size in sizes]
        self.unflushed: list[list[tuple[int, bytes]]] = [[] for _ in sizes]
        self.history = History(sizes, loop.time)
        self.kept = Kept()
        self.keys = Keyring(self.around.group_key(self.plan.identity), self.plan.identity)
        self.rng = self.around.rng(f"{name}/machine")
        self.guest_rng = self.around.rng(f"{name}/guest")
        self.random = SeededRandom(self.around.rng(f"{name}/agent"))
        self.changed = asyncio.Event()
        self.tap_context = contextvars.Context()
        self.writes = 0
        self.disk_fails = self.disk_slow = False
        self.is_up = True
        self.is_retired = False

    # --- processes

    def start_tap(self) -> None:
        """The tap's process begins, over what is there."""
        if (self.tap is not None and self.tap.is_alive) or not self.is_up:
            return
        means = TapMeans(self.rng, self.clock.wall_ns, self.around.count, self._notify)
        self.tap = Tap(self.plan.shape, means, self.history, self.kept, self.ring, self.disks)
        self.ring = self.tap.ring
        self.around.trace(self.plan.name, "tap", self.tap.ring.generation.hex()[:8], self.tap.cause)

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def stop_tap(self, *, cleanly: bool) -> None:
        """The tap's process ends."""
        if self.tap is not None and self.tap.is_alive:
            self.around.trace(self.plan.name, "tap ends", cleanly)
            if cleanly:
                self.tap.stop_cleanly()
            else:
                self.tap.die()

    def start_agent(self) -> None:
        """The agent's process begins."""
        if (self.agent is not None and self.agent.is_alive) or not self.is_up:
            return
        around, plan = self.around, self.plan
        self.lives += 1
        self.agent = Process(around.loop, f"{plan.name}/agent{self.lives}")
        settings = StreamSettings(
            plan.identity,
            "sim",
            commit_seconds=plan.commit_seconds,
            frame_bytes_max=64 * 1024,
            sync_chunk_bytes=64 * 1024,
            sync_ahead_bytes=128 * 1024,
            spool=self._spool(),
        )
        means = Means(self.clock, self.random, self._beside)
        doors = Doors(self._connect_tap, self._dial, len(plan.addresses), self.keys)
        buckets = Buckets(plan.rate, plan.sync_rate, self.clock.monotonic())
        self.stream = Stream(settings, doors, means, buckets)
        self.agent.start(self.stream.run())
        self.agent.start(self._checkpoints(self.stream))
        around.trace(plan.name, "agent", self.lives)

    def _spool(self) -> SpoolSettings | None:
        """Its file is on a disk of its own, and durable."""
        if not self.plan.spool_kib:
            return None
        path = self.around.folder / self.plan.name
        return SpoolSettings(path, self.plan.spool_kib * 1024)

    def kill_agent(self) -> None:
        """SIGKILL."""
        if self.agent is not None and self.agent.is_alive:
            self.around.trace(self.plan.name, "agent killed")
            if self.stream is not None and self.stream.figures.counters.records_sent_again:
                self.around.count("resent")
            self.agent.kill()

    async def _beside(self, function: Callable[[], Result]) -> Result:
        await asyncio.sleep(self.rng.uniform(0.0001, 0.002))
        return function()

    async def _connect_tap(self) -> TapConnection:
        if self.tap is None or not self.tap.is_alive:
            raise TapGone("The tap does not run.", retryable=True)
        if not self.plan.shape.disks:
            raise NotAttached("No disk is attached.")
        assert self.agent is not None
        door = ComparingConnection if self.plan.spool_kib else TapConnection
        return door(self, self.tap, self.agent)

    async def _dial(self, address: int) -> AgentLink:
        plan = self.plan
        assert self.agent is not None
        self.around.trace(plan.name, "dial", address)
        place, server = plan.addresses[address], plan.servers[address]
        return await self.around.net.dial(self.agent, plan.name, place, server)

    async def _checkpoints(self, stream: Stream) -> None:
        """What the control plane asks for, now and then waited for."""
        while True:
            await asyncio.sleep(self.plan.checkpoint_seconds * self.rng.uniform(0.5, 1.5))
            body: dict[str, object] = {
                "checkpoint": self.rng.randbytes(16).hex(),
                "kind": "crash",
                "tag": None,
                "scope": "stream",
            }
            try:
                generation, seq, _ = await stream.mark(body)
                if self.rng.random() < 0.3:
                    async with asyncio.timeout(5.0):
                        await stream.wait_stored(generation, seq)
                        self.around.count("checkpoint_waited_for")
            except (HoldfastError, TimeoutError):
                self.around.count("checkpoint_refused")

    # --- the worst

    def power_loss(self) -> None:
        """Everything in memory goes; of unflushed writes any part may be on the disks."""
        if not self.is_up:
            return
        self.around.trace(self.plan.name, "power loss")
        self.stop_tap(cleanly=False)
        self.kill_agent()
        self.is_up = False
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        share = self.rng.choice([0.0, 0.5, 0.9, 1.0])
        for number, writes in enumerate(self.unflushed):
            image = bytearray(self.durable[number])
            for offset, data in writes:
                for at in range(0, len(data), SECTOR):
                    if self.rng.random() < share:
                        image[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
            self.disks[number][:] = image
            self.durable[number] = bytes(image)
            writes.clear()
            self.history.became(number, bytes(image))

    def retire(self) -> None:
        """Turned off for good."""
        self.is_retired = True
        self.power_loss()

    def copy(self, name: str, *, with_memory: bool) -> Machine | None:
        """A second host out of this one: a clone of all of it, or its disks from a backup."""
        tap = self.tap
        if tap is None or not tap.is_alive or tap.pending or self.ring is None:
            return None
        twin = Machine(replace(self.plan, name=name), self.around)
        twin.disks = [bytearray(disk) for disk in self.disks]
        twin.durable = list(self.durable)
        twin.unflushed = [list(writes) for writes in self.unflushed]
        twin.keys.kept = dict(self.keys.kept)
        twin.history = self.history.fork()
        twin.kept = Kept(generation=self.kept.generation)
        if with_memory:
            twin.ring = self.ring.copy()
            tap.snapshot(twin.kept)
        twin.is_up = False
        spool = self.around.folder / self.plan.name
        if spool.exists():
            shutil.copytree(spool, self.around.folder / name)
        self.around.trace(self.plan.name, "copied", name, with_memory)
        return twin

    def power_on(self) -> None:
        """The host starts, and on it what starts with it."""
        self.is_up = True
        self.start_tap()
        self.start_agent()

    # --- guests

    def content(self, length: int) -> bytes:
        """Sectors that no other write has: host, turn, place."""
        self.writes += 1
        head = f"{self.plan.name}:{self.writes}:".encode()
        return b"".join(
            (head + b"%d;" % at).ljust(32, b".") * (SECTOR // 32) for at in range(length // SECTOR)
        )

    async def write(self) -> None:
        """One request of a guest, to its answer."""
        rng, tap = self.guest_rng, self.tap
        disk = rng.randrange(len(self.disks))
        size = len(self.disks[disk])
        length = SECTOR * rng.choice((1, 1, 2, 4, 8, 8, 8, 16, 33, 64))
        offset = SECTOR * rng.randrange((size - length) // SECTOR + 1)
        if rng.random() < 0.5:  # a hot quarter
            offset = offset // 4 // SECTOR * SECTOR
        kind = rng.random()
        if tap is None or not tap.is_alive:
            return
        if kind < 0.08:
            await self._flush(tap, disk)
            return
        op = Op.ZERO if kind < 0.12 else Op.TRIM if kind < 0.16 else Op.WRITE
        data = self.content(length) if op == Op.WRITE else bytes(length)
        if self.disk_fails and rng.random() < 0.3:
            part = data[: SECTOR * rng.randrange(length // SECTOR)]
            tap.refuse(disk, offset, part)
            self.unflushed[disk].append((offset, part))
            return
        pending = tap.begin_write(op, disk, offset, data)
        if pending is None:
            return
        self.unflushed[disk].append((offset, data))
        try:
            if self.disk_slow or rng.random() < 0.2:
                await asyncio.sleep(rng.uniform(0.0, 1.0 if self.disk_slow else 0.01))
        finally:  # the disk answers, whoever waits for it
            if tap.is_alive:
                tap.record(pending)

    async def _flush(self, tap: Tap, disk: int) -> None:
        if any(one.disk == disk for one in tap.pending):
            return
        self.durable[disk] = bytes(self.disks[disk])
        self.unflushed[disk].clear()
        tap.flush(disk)
