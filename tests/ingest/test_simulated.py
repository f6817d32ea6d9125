"""Sessions in virtual time: exact limits, and thousands of random fates of a stream from seeds."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

import pytest

from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import TenantKey
from host_agent.wire.message import Close, CommitNow, Probe, Stored
from host_agent.wire.names import Identity, chain_name
from tests.ingest.reading import read_chain
from tests.ingest.simulation import (
    SimulatedLine,
    Trouble,
    World,
    check_acknowledged,
    simulate,
)
from tests.servers.agent import Source
from workers.ingest.chain import ChainWriter
from workers.ingest.errors import CloseCode, SessionEnded
from workers.ingest.server import Streams
from workers.storage.errors import OutcomeUnknown, StoreUnavailable
from workers.storage.port import Created

_KEY = TenantKey("acme", bytes(range(32)))


def _source(seed: int = 1) -> Source:
    rng = random.Random(seed)
    return Source(Identity("acme", "shop", "host1"), _KEY, rng, start_ns=1_767_225_600 * 10**9)


def _quiet(seed: int = 1) -> World:
    return World(random.Random(seed), Trouble(seconds_max=0.01))


def test_commit_happens_at_its_age_and_not_before() -> None:
    async def main() -> None:
        world = _quiet()
        line = SimulatedLine(world, Streams(), _source())
        assert await line.hello()
        for _ in range(10):
            line.send(line.source.head, line.source.head)
            line.source.write(1)
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time() - 0.1
        while not line.of(Stored):
            await asyncio.sleep(0.001)
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.2, abs=0.03)
        assert line.of(Stored)[0].seq == 10
        line.hang_up()
        await world.end()

    simulate(main)


def test_probes_leave_once_a_second_and_silence_ends_after_thirty() -> None:
    async def main() -> None:
        world = _quiet()
        line = SimulatedLine(world, Streams(), _source())
        assert await line.hello()
        await asyncio.sleep(60)
        assert len(line.of(Probe)) == pytest.approx(60, abs=2)
        codes = [line.close_code]
        line.answers = False
        for seconds in (29, 3):
            await asyncio.sleep(seconds)
            codes.append(line.close_code)
        assert codes == [None, None, "idle"]
        await world.end()

    simulate(main)


def test_hello_must_come_within_five_seconds() -> None:
    async def main() -> None:
        world = _quiet()
        line = SimulatedLine(world, Streams(), _source())
        await asyncio.sleep(4.9)
        codes = [line.close_code]
        await asyncio.sleep(0.2)
        codes.append(line.close_code)
        assert codes == [None, "idle"]
        await world.end()

    simulate(main)


def test_end_waits_for_a_hanging_store_within_bounds() -> None:
    async def main() -> None:
        world = World(random.Random(1), Trouble(seconds_max=0.01))
        line = SimulatedLine(world, Streams(), _source())
        assert await line.hello()
        world.trouble.seconds_max = 10_000.0
        line.send(1, 1)
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        line.session.end(SessionEnded(CloseCode.STOPPING, "stopping", retry_seconds=1.0))
        await line.session.finished.wait()
        assert asyncio.get_running_loop().time() - began <= 5
        assert line.close_code == "stopping"
        assert not line.of(Stored)

    simulate(main)


def test_waiting_checkpoints_are_committed_at_once_but_not_endlessly() -> None:
    async def main() -> None:
        world = World(random.Random(1), Trouble(seconds_max=0.0))
        line = SimulatedLine(world, Streams(), _source())
        assert await line.hello()
        line.send(1, 1)
        line.say(CommitNow(1))
        await asyncio.sleep(0.001)
        assert [stored.seq for stored in line.of(Stored)] == [1]
        for _ in range(1000):
            line.source.write(1)
            line.send(line.source.head, line.source.head)
            line.say(CommitNow(line.source.head))
            await asyncio.sleep(0.001)
        assert len(line.of(Stored)) <= 1 + 1000 * 0.001 / 0.05 + 1
        line.hang_up()
        await world.end()

    simulate(main)


@pytest.mark.invariant("I11")
def test_what_is_only_received_is_not_safe() -> None:
    """I11: the store takes nothing; the tap says where it is, ingest has it all, and nothing of it
    would survive."""

    async def main() -> None:
        world = _quiet()
        streams = Streams()
        line = SimulatedLine(world, streams, _source())
        assert await line.hello()
        (facts,) = streams.facts.values()
        line.send(1, 1)
        await asyncio.sleep(3)
        assert facts.rpo.safe is not None
        world.trouble.seconds_max = 10_000.0
        line.source.write(1)
        line.send(2, 2)
        before = facts.rpo.safe.monotonic
        await asyncio.sleep(30)
        assert len(line.of(Probe)) > 30
        assert facts.received == 2
        assert facts.rpo.safe.monotonic <= before + 1.1
        line.session.end(SessionEnded(CloseCode.STOPPING, "stopping", retry_seconds=1.0))
        await line.session.finished.wait()

    simulate(main)


@pytest.mark.invariant("I12")
def test_endless_reconnects_slow_down() -> None:
    """I12: an agent that comes again and again makes a bounded number of epochs."""

    async def main() -> None:
        world = World(random.Random(1), Trouble(seconds_max=0.0))
        streams, source = Streams(), _source()
        while asyncio.get_running_loop().time() < 100:
            line = SimulatedLine(world, streams, source)
            await line.hello()
            line.hang_up()
            await line.session.finished.wait()
            await asyncio.sleep(0.01)
        await world.end()
        assert 100 < len(world.store.objects) < 64 + 110

    simulate(main)


class _Life:
    """One agent over random fates: two processes, a store in trouble, connections that break."""

    def __init__(self, seed: int, trouble: Trouble) -> None:
        self.rng = random.Random(seed)
        self.world = World(self.rng, trouble)
        self.source = _source(seed)
        self.acknowledged = 0
        self.closes: list[str] = []

    async def run(self, connections: int = 12) -> None:
        processes = [Streams(), Streams()]
        for _ in range(connections):
            await self._connect(self.rng.choice(processes))
        # At the end everything is healed: the stream must get there.
        self.world.trouble.late = self.world.trouble.away = self.world.trouble.answer_lost = 0.0
        await asyncio.sleep(10)
        for _ in range(5):
            if self.acknowledged < self.source.head:
                await self._connect(processes[0], to_the_end=True)
        assert self.acknowledged == self.source.head, "the healed stream did not get there"
        await self.world.end()

    async def _connect(self, streams: Streams, *, to_the_end: bool = False) -> None:
        line = SimulatedLine(self.world, streams, self.source)
        welcome = await line.hello()
        if welcome is not None:
            at = welcome.stored if welcome.begin == "resume" else 0
            assert at >= self.acknowledged, "acknowledged positions are gone"
            assert at == 0 or welcome.record_hash == self.source.hashes[at].hex()
            self.acknowledged = at
            await self._send(line, at, to_the_end)
        line.hang_up()
        self.closes += [line.close_code] if line.close_code else []
        # A zombie: the next connection does not wait for this one's end.
        await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.5]))

    async def _send(self, line: SimulatedLine, at: int, to_the_end: bool) -> None:
        frames = self.rng.randrange(1, 10)
        while not line.closed and (to_the_end or frames):
            frames -= 1
            if at == self.source.head and not to_the_end:
                self.source.write(self.rng.randrange(1, 4), 512)
            last = self.rng.randint(at + 1, self.source.head) if at < self.source.head else at
            if last > at and not line.paused:
                line.send(at + 1, last)
                at = last
            await asyncio.sleep(self.rng.uniform(0, 0.6))
            for stored in check_acknowledged(self.world, line):
                self.acknowledged = max(self.acknowledged, stored.seq)
            if to_the_end and self.acknowledged == self.source.head:
                return

    def check(self) -> None:
        """The whole chain, by a reader that shares nothing with the writer."""
        chain = read_chain(self.world.store, self.source)
        assert len(chain.seqs) >= self.acknowledged
        assert chain.epochs == sorted(set(chain.epochs))
        writers = {(segment.epoch, segment.writer) for segment in chain.segments}
        assert len(writers) == len(chain.epochs), "two writers shared an epoch"
        times = [segment.committed_at for segment in chain.segments]
        assert times == sorted(times)


def _live(seed: int, trouble: Trouble) -> _Life:
    async def main() -> _Life:
        life = _Life(seed, trouble)
        await life.run()
        life.check()
        return life

    life: _Life = simulate(main)
    return life


def _trouble(seed: int) -> Trouble:
    rng = random.Random(seed)
    return Trouble(
        late=rng.choice([0.0, 0.05, 0.2]),
        answer_lost=rng.choice([0.0, 0.05, 0.2]),
        away=rng.choice([0.0, 0.1]),
        seconds_max=rng.choice([0.0, 0.1, 1.0]),
    )


@pytest.mark.invariant("I2", "I7", "I14")
@pytest.mark.parametrize("block", range(8))
def test_random_fates_of_a_stream(block: int) -> None:
    """I2, I7, I14: late, lost and refused requests, zombies, two processes; 40 seeds a block."""
    late, closes = 0, set()
    for seed in range(block * 40, block * 40 + 40):
        life = _live(seed, _trouble(seed))
        late += life.world.store.late
        closes |= set(life.closes)
    assert late > 10
    assert {"store_error"} <= closes <= {"store_error", "fenced", "replaced"}


def test_a_seed_repeats_itself() -> None:
    def digest() -> str:
        life = _live(5, _trouble(5))
        running = hashlib.sha256(life.world.log.getvalue().encode())
        for name, data in sorted(life.world.store.objects.items()):
            if "/keys/" not in name:
                running.update(name.encode() + len(data).to_bytes(8, "little"))
        return running.hexdigest()

    assert digest() == digest()


Bug = Callable[[pytest.MonkeyPatch], None]


def _acknowledge_on_a_doubt(patch: pytest.MonkeyPatch) -> None:
    good = ChainWriter._create

    def create(self: ChainWriter, place: int, data: bytes) -> bool:
        try:
            return good(self, place, data)
        except OutcomeUnknown:
            return True

    patch.setattr(ChainWriter, "_create", create)


def _take_exists_for_success(patch: pytest.MonkeyPatch) -> None:
    def create(self: ChainWriter, place: int, data: bytes) -> bool:
        name = chain_name(self._identity, place)
        assert self._store.put_if_absent(name, data) in Created
        return True

    patch.setattr(ChainWriter, "_create", create)


def _acknowledge_before_the_store(patch: pytest.MonkeyPatch) -> None:
    good = ChainWriter._create

    def create(self: ChainWriter, place: int, data: bytes) -> bool:
        try:
            return good(self, place, data)
        except StoreUnavailable:
            return True

    patch.setattr(ChainWriter, "_create", create)


def _forget_to_claim(patch: pytest.MonkeyPatch) -> None:
    good = ChainWriter.claim

    def claim(self: ChainWriter):  # type: ignore[no-untyped-def]  # noqa: ANN202
        if self._end is None:
            return good(self)
        self._epoch = self._end.epoch
        return self._end

    patch.setattr(ChainWriter, "claim", claim)


@pytest.mark.parametrize(
    "bug",
    [
        _acknowledge_on_a_doubt,
        _take_exists_for_success,
        _acknowledge_before_the_store,
        _forget_to_claim,
    ],
    ids=lambda bug: bug.__name__.strip("_"),
)
def test_planted_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: each of these mistakes fails within the seeds of the test above."""
    bug(monkeypatch)
    with pytest.raises((AssertionError, HoldfastError)):
        for seed in range(320):
            _live(seed, _trouble(seed))


def test_close_of_ingest_names_its_codes() -> None:
    assert {code.value for code in CloseCode} >= {"fenced", "replaced", "store_error"}
    assert Close("idle", "x").retry_seconds is None
