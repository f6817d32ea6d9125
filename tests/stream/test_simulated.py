"""Random schedules of faults in simulated time, from one seed each.

Safety: at every moment the journal holds a gap-free prefix whose hash is the ring's (the fake
ingest asserts it), nothing is freed that is not stored, and a probe is never answered with a head
that the tap did not state. Liveness: once all faults are healed everything is stored within bounded
time, and the journal makes the source's disk byte for byte.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from host_agent.stream import greeting
from host_agent.stream.connection import Connection
from host_agent.stream.ledger import Freed
from host_agent.stream.prepare import Prepared
from host_agent.stream.session import Resume, RingPosition, judge_welcome
from host_agent.stream.syncing import SyncDriver
from host_agent.wire.message import Close, Throttle, Welcome
from tests.stream.fake_ingest import FakeIngest
from tests.stream.fake_tap import FakeTap
from tests.stream.harness import Bench, Randomness
from tests.stream.simulated import simulate

SEEDS = 250
HEAL_SECONDS = 120.0
DESCRIPTORS = Path("/proc/self/fd")


@dataclass
class Schedule:
    """One run: what may happen, drawn from one random source."""

    seed: int
    bench: Bench = field(init=False)
    happened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        tap = FakeTap(
            disk_bytes=4096 * self.rng.randint(8, 64),
            ring_bytes=4096 * self.rng.randint(48, 400),
            slots=8192,
        )
        ingest = FakeIngest(
            commit_seconds=self.rng.choice([0.01, 0.3, 2.0]),
            window_bytes=self.rng.choice([64 << 10, 1 << 20, 64 << 20]),
        )
        rate = self.rng.choice([None, None, 200_000.0, 2_000_000.0])
        random_source = Randomness(self.seed)
        self.bench = Bench(tap, ingest, rate, rate, random=random_source)

    def guest(self) -> None:
        for _ in range(self.rng.randint(1, 12)):
            length = 512 * self.rng.randint(1, 16)
            offset = 512 * self.rng.randint(0, (self.bench.tap.disk_bytes - length) // 512)
            self.bench.tap.write(offset, self.rng.randbytes(length))
        self.bench.tap.flush()

    def cut(self) -> None:
        if self.bench.ingest.links:
            self.bench.ingest.links[-1].cut()

    def down(self) -> None:
        self.bench.ingest.down = not self.bench.ingest.down

    def silent(self) -> None:
        self.bench.ingest.silent_hello = not self.bench.ingest.silent_hello

    def slow_store(self) -> None:
        self.bench.ingest.holds_back = not self.bench.ingest.holds_back

    def stall(self) -> None:
        for link in self.bench.ingest.links[-1:]:
            link.stall = None if link.stall else asyncio.Event()

    def probe(self) -> None:
        if self.bench.ingest.links:
            self.bench.ingest.links[-1].probe()

    def throttle(self) -> None:
        if self.bench.ingest.links:
            rate = self.rng.choice([0, 50_000, 1_000_000])
            self.bench.ingest.links[-1].say(Throttle(rate, "quota"))

    def refuse(self) -> None:
        codes = ["store_error", "stopping", "idle", "limit", "sequence_gap", "bad_frame"]
        self.bench.ingest.refuse = (
            None
            if self.bench.ingest.refuse
            else Close(self.rng.choice(codes), "no", "", self.rng.choice([0.0, 0.5, 3.0]))
        )

    def pause(self) -> None:
        stream = self.bench.stream
        stream.resume() if stream.is_paused else stream.pause()

    def tap_gone(self) -> None:
        tap = self.bench.tap
        tap.is_gone = not tap.is_gone
        if not tap.is_gone and self.rng.random() < 0.5:
            tap.new_generation("unclean_stop")
        tap._notify()

    def heal(self) -> None:
        ingest, tap = self.bench.ingest, self.bench.tap
        ingest.down = ingest.silent_hello = ingest.holds_back = tap.is_gone = False
        ingest.refuse = None
        for link in ingest.links:
            if link.stall is not None:
                link.stall.set()
        self.cut()
        tap._notify()
        if self.bench.stream.is_paused or self.bench.stream.is_stopped:
            self.bench.stream.resume()

    def faults(self) -> list[Callable[[], None]]:
        names = ["cut", "down", "silent", "slow_store", "stall", "probe", "throttle", "refuse"]
        names += ["pause", "tap_gone", "guest", "guest", "guest", "guest", "probe"]
        return [getattr(self, name) for name in names]

    async def run(self) -> tuple[float, int, int]:
        """(when it was drained, bytes on the wire, frames): the same whenever the seed is."""
        bench, loop = self.bench, asyncio.get_running_loop()
        bench.start()
        prober = asyncio.create_task(self._probe_for_ever())
        faults = self.faults()
        for _ in range(60):
            await asyncio.sleep(self.rng.choice([0.001, 0.02, 0.2, 1.5]))
            if self.rng.random() < 0.08:
                self.happened.append("kill")
                await bench.restart()
            fault = self.rng.choice(faults)
            self.happened.append(fault.__name__)
            fault()
            self.check()
        self.heal()
        await bench.until(self._is_drained, HEAL_SECONDS)
        bench.check_equal()
        at = loop.time()
        prober.cancel()
        await bench.kill()
        arrivals = bench.ingest.arrivals
        return at, sum(size for _, size in arrivals), len(bench.ingest.counters)

    async def _probe_for_ever(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            self.probe()

    def _is_drained(self) -> bool:
        if self.bench.stream.is_stopped:
            self.bench.stream.resume()  # the person who looks
        return self.bench.is_drained

    def check(self) -> None:
        ingest, ring = self.bench.ingest, self.bench.tap.ring
        assert self.bench.failed is None, self.bench.failed
        if ring.freed:
            names = {generation.name: generation.stored for generation in ingest.generations}
            assert names.get(ring.generation, 0) >= ring.freed, "freed, not stored"
        counters = self.bench.stream.figures.counters
        assert counters.records_held >= 0
        assert len(set(ingest.counters)) == len(ingest.counters), "a key and nonce came twice"


@pytest.mark.invariant("I2", "I4", "I14", "I16")
@pytest.mark.parametrize("block", range(5))
def test_schedules_end_equal(block: int) -> None:
    for seed in range(block, SEEDS, 5):
        schedule = Schedule(seed)
        before = len(list(DESCRIPTORS.iterdir()))
        try:
            simulate(schedule.run())
            assert len(list(DESCRIPTORS.iterdir())) == before, "a ring stayed open"
            schedule.bench.tap.close()
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {schedule.happened}") from error


def test_a_seed_repeats_itself() -> None:
    assert simulate(Schedule(7).run()) == simulate(Schedule(7).run())
    assert simulate(Schedule(7).run()) != simulate(Schedule(8).run())


def _free_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Connection._account

    def early(self: Connection, frame: Prepared) -> None:
        honest(self, frame)
        self._to_free = Freed(frame.last_seq, frame.anchor, frame.anchor_hash)
        self._freeing.notify()

    monkeypatch.setattr(Connection, "_account", early)


def _repeat_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Randomness, "bytes", lambda _self, count: b"s" * count)


def _resume_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(welcome: Welcome, ring: RingPosition) -> Resume:
        resume = judge_welcome(welcome, ring)
        return replace(resume, first=resume.first + 1, verify=None) if ring.head else resume

    monkeypatch.setattr(greeting, "judge_welcome", late)


def _skip_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(_self: SyncDriver) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(SyncDriver, "run", idle)


@pytest.mark.parametrize(
    "plant", [_free_what_was_sent, _repeat_salts, _resume_one_late, _skip_the_sync]
)
def test_planted_defects_are_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the same schedules must fail when the mechanism is broken."""
    plant(monkeypatch)
    caught = 0
    for seed in range(12):
        try:
            simulate(Schedule(seed).run())
        except Exception:  # noqa: BLE001 - whatever it raises, the defect was noticed
            caught += 1
    assert caught


async def _flap_while_idle() -> Bench:
    """A connection that is cut every half minute, with nothing to store meanwhile."""
    schedule = Schedule(1)
    bench = schedule.bench
    bench.start()
    prober = asyncio.create_task(schedule._probe_for_ever())
    await bench.until(lambda: bench.is_drained, 60)
    for _ in range(8):
        await asyncio.sleep(30.0)
        assert bench.stream.phase == "streaming"
        schedule.cut()
    await asyncio.sleep(30.0)
    prober.cancel()
    await bench.kill()
    return bench


def test_an_idle_stream_forgets_old_failures() -> None:
    bench = simulate(_flap_while_idle())
    assert bench.stream.decider.alert is None
    assert bench.stream.decider.failures == 0
