"""The journal's worker beside the streams: index objects, folding, collection, restores.

All of it is the product's own, over the same store and under the same faults as everything else. A
history window and a grace are seconds here instead of hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import Identity
from tests.sim.loop import Process, offload
from tests.sim.store import Client, sleep
from tests.sim.world import GRACE_SECONDS, WINDOW_SECONDS, World
from workers.journal.collect import CollectOptions, Collector
from workers.journal.fold import Folder, FoldTools
from workers.journal.hashlist import write_hashes
from workers.journal.indexing import write_indexes
from workers.journal.retention import Policy
from workers.restore.fetch import fetch_all
from workers.storage.port import ObjectStore
from workers.storage.retry import RetryingStore, RetryPolicy, RetryTools

_EVERY_SECONDS = 7.0


def store_of(world: World, process: Process) -> ObjectStore:
    """A process's way to the store, as the product wraps it."""
    client = Client(world.service, world.loop, lambda: process.is_alive)
    rng = world.source(f"{process.name}/retry")
    tools = RetryTools(lambda s: sleep(world.loop, s), world.loop.time, rng)
    return RetryingStore(client, RetryPolicy(), tools)


class Worker:
    """Works on one stream after the other; dies now and then in the middle of it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.source("worker")
        self._lives = 0
        self._begin()

    def _begin(self) -> None:
        self._lives += 1
        self._process = Process(self._world.loop, f"worker{self._lives}")
        self._store = store_of(self._world, self._process)

    async def run(self) -> None:
        """Until it is cancelled."""
        world, options = self._world, self._world.options
        jobs: list[Callable[[Identity], None]] = []
        if options.indexes:
            jobs.append(self._index)
        if options.folds:
            jobs += [self._fold, self._collect]
        if options.spool_kib:
            jobs.append(self._hash)
        while jobs:
            await asyncio.sleep(_EVERY_SECONDS * self._rng.uniform(0.5, 1.5))
            identity = self._rng.choice(world.machines).plan.identity
            # One reads the whole journal: now and then is enough.
            for job in jobs if self._rng.random() < 0.6 else jobs[:1]:
                await self._one(job, identity)

    async def _one(self, job: Callable[[Identity], None], identity: Identity) -> None:
        async def work() -> None:
            try:
                await offload(lambda: job(identity))
            except HoldfastError as error:
                self._world.count(f"worker_{error.code}")

        task = self._process.start(work())
        if self._rng.random() < 0.1:
            await asyncio.wait([task], timeout=self._rng.uniform(0.01, 0.5))
            if not task.done():
                self._world.count("worker_killed")
                self._process.kill()
                self._begin()
        else:
            await asyncio.wait([task])

    def _index(self, identity: Identity) -> None:
        made = write_indexes(self._store, identity, self._world.keys.tenant(identity.tenant))
        self._world.counters["index_made"] += len(made.made)

    def _hash(self, identity: Identity) -> None:
        key = self._world.keys.tenant(identity.tenant)
        write_hashes(self._store, identity, key, fetch_all)
        self._world.count("hash_list_made")

    def _fold(self, identity: Identity) -> None:
        world = self._world
        stream = (identity, world.keys.tenant(identity.tenant))
        tools = FoldTools(fetch_all, self._rng.randbytes)
        policy = Policy(window_seconds=WINDOW_SECONDS)
        folded = Folder(self._store, stream, policy, tools).run()
        if folded.folded_places:
            world.count("folded")

    def _collect(self, identity: Identity) -> None:
        options = CollectOptions(grace_seconds=GRACE_SECONDS)
        collector = Collector(self._store, identity, options)
        plan = collector.plan()
        for _ in collector.steps(plan):
            self._world.count("collected")
