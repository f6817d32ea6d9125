"""Runs schedules: one, many, and again those that failed."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from host_agent.stream import spoolfile
from host_agent.wire import hashing, keys, limits, seal
from tests.sim.faults import Nemesis
from tests.sim.loop import Killed, simulation
from tests.sim.options import Options
from tests.sim.world import GRACE_SECONDS, GRID, Keys, World
from workers.ingest import chain, session
from workers.journal import indexfile, retention


class Inline:
    """An executor without threads: a call is made when it is submitted."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, call: Callable[..., Any], *over: Any) -> Iterator[Any]:
        """Make the calls as they are wanted."""
        return map(call, *over)

    def shutdown(self, *_: object, **__: object) -> None:
        """Nothing runs."""

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Make the call now."""
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args))
        except Killed:
            raise
        except BaseException as error:  # noqa: BLE001 - the caller's
            done.set_exception(error)
        return done


class Entropy:
    """The random source that keys are made from."""

    def __init__(self) -> None:
        self.rng = random.Random("keys")

    def urandom(self, count: int) -> bytes:
        """So many bytes."""
        return self.rng.randbytes(count)


_CURRENT: list[World] = []
_SHARED: dict[str, Any] = {}


def _seal(self: seal.FrameSealer, *args: Any, **given: Any) -> seal.SealedFrame:
    sealed: seal.SealedFrame = _SHARED["seal"](self, *args, **given)
    if _CURRENT:
        _CURRENT[-1].on_sealed(sealed.header.commitment, sealed.header.counter)
    return sealed


@contextmanager
def environment() -> Iterator[Keys]:
    """Small limits, no threads, no entropy: what every schedule runs in. One at a time."""
    assert seal.FrameSealer.seal is not _seal, "schedules run in one environment"
    with ExitStack() as stack:
        entropy = Entropy()
        _SHARED["seal"], _SHARED["entropy"] = seal.FrameSealer.seal, entropy
        for place, name, value in (
            (keys, "os", SimpleNamespace(urandom=entropy.urandom)),
            (hashing, "HASH_GRID", GRID),
            (limits, "SEGMENT_BYTES_TARGET", 96 * 1024),
            (session, "WINDOW_BYTES", 192 * 1024),
            (session, "_RECEIVED_EVERY_BYTES", 64 * 1024),
            (indexfile, "SPAN", 8),
            (spoolfile, "SPOOL_BYTES_MIN", 64 * 1024),
            (os, "fsync", lambda _descriptor: None),
            (os, "fdatasync", lambda _descriptor: None),
            (retention, "WINDOW_SECONDS_MIN", 5),
            (chain, "STALL_SECONDS", GRACE_SECONDS // 10),
            (seal.FrameSealer, "seal", _seal),
        ):
            stack.enter_context(patch.object(place, name, value))
        for name, module in sorted(sys.modules.items()):
            if name.startswith("workers.") and hasattr(module, "ThreadPoolExecutor"):
                stack.enter_context(patch.object(module, "ThreadPoolExecutor", Inline))
        found = Keys()
        for tenant in ("tenant0", "tenant1"):
            found.group(tenant)
        yield found


@dataclass
class Outcome:
    """Of one schedule. `failure` None: every invariant held."""

    options: Options
    digest: str
    failure: str | None
    counters: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run_one(options: Options, found: Keys, show: bool = False) -> Outcome:
    """One schedule in the present `environment`."""
    _SHARED["entropy"].rng = random.Random(f"entropy/{options.seed}")
    failure = None
    with simulation() as loop:
        world = World(loop, options, found, show)
        _CURRENT.append(world)
        main = loop.create_task(_schedule(world))
        try:
            loop.run_until_complete(main)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            failure = f"{type(error).__name__}: {error}"
            if show:
                traceback.print_exc()
        digest, seconds = world.digest(), loop.time()
        _tidy(loop, world, main)
        _CURRENT.pop()
    return Outcome(options, digest, failure, world.counters, seconds)


def _tidy(loop: Any, world: World, main: asyncio.Task[None]) -> None:
    """End all that still runs, so that nothing of it reaches the next schedule."""
    world.end()

    async def rest() -> None:
        for _ in range(50):
            left = [t for t in asyncio.all_tasks(loop) if t is not asyncio.current_task()]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)

    loop.turns = 0
    try:
        loop.run_until_complete(rest())
    finally:
        world.close()
        if not main.done():
            main.cancel()


async def _schedule(world: World) -> None:
    options = world.options
    loop = world.loop
    world.start()
    nemesis = Nemesis(world)
    watcher = loop.create_task(world.watch())
    work = [loop.create_task(world.guests(machine)) for machine in world.machines]
    work.append(loop.create_task(nemesis.run()))
    work += [loop.create_task(_reader(world)) for _ in range(options.readings)]
    try:
        everything = asyncio.ensure_future(asyncio.gather(*work))
        await asyncio.wait((watcher, everything), return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            watcher.result()
        everything.result()
        nemesis.heal()
        await world.settle()
    finally:
        for one in (watcher, *work):
            one.cancel()
    world.check_defects()
    world.check_claims()
    for identity in {machine.plan.identity: None for machine in world.machines}:
        world.judge(identity, at_end=True)


async def _reader(world: World) -> None:
    """Somebody restores in the middle of it."""
    rng = world.source("reader")
    await asyncio.sleep(rng.uniform(0.3, 1.0) * world.options.seconds)
    world.judge(rng.choice(world.machines).plan.identity)
