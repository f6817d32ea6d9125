"""A whole stream over faults: what the journal holds is what the disk held.

Method: real stream code between a tap and an ingest in memory. After each fault the journal, opened
with the tenant's key and replayed by an independent rule, must equal the source byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace

import pytest

from host_agent.stream.connection import Connection
from host_agent.stream.parts import OpenRing
from host_agent.stream.ports import Link
from host_agent.wire.message import Close, Probed
from tests.stream.fake_ingest import FakeIngest
from tests.stream.fake_tap import FakeTap
from tests.stream.harness import Bench, in_loop, running


def make(**knobs: float | None) -> Bench:
    return Bench(FakeTap(), FakeIngest(), **knobs)  # type: ignore[arg-type]


def guest_writes(bench: Bench, rng: random.Random, count: int) -> None:
    """Overlapping writes of 512 B to 16 KiB, and a flush now and then."""
    for _ in range(count):
        length = 512 * rng.randint(1, 32)
        offset = 512 * rng.randint(0, (bench.tap.disk_bytes - length) // 512)
        bench.tap.write(offset, rng.randbytes(length))
        if rng.random() < 0.1:
            bench.tap.flush()


@pytest.mark.invariant("I2")
@in_loop
async def test_initial_sync_and_writes_arrive() -> None:
    bench, rng = make(), random.Random(1)
    guest_writes(bench, rng, 20)
    async with running(bench):
        await bench.drained()
        bench.check_equal()
        for _ in range(20):
            guest_writes(bench, rng, 10)
            await asyncio.sleep(0.003)
        await bench.drained()
        bench.check_equal()
    assert bench.stream.figures.counters.records_held == 0


@pytest.mark.invariant("I2", "I4")
@pytest.mark.parametrize("seed", range(8))
@in_loop
async def test_agent_killed_at_random_moments_loses_and_doubles_nothing(seed: int) -> None:
    bench, rng = make(), random.Random(seed)
    async with running(bench):
        for _ in range(12):
            guest_writes(bench, rng, 8)
            await asyncio.sleep(rng.random() * 0.04)
            await bench.restart()
        await bench.drained()
        bench.check_equal()
    assert len(bench.ingest.generations) == 1, "a restart must not cost a new generation"


@pytest.mark.invariant("I2", "I4")
@pytest.mark.parametrize("seed", range(4))
@in_loop
async def test_cut_connections_resume_where_the_journal_ends(seed: int) -> None:
    bench, rng = make(), random.Random(seed)
    async with running(bench):
        for _ in range(10):
            guest_writes(bench, rng, 8)
            await asyncio.sleep(rng.random() * 0.05)
            if bench.ingest.links:
                bench.ingest.links[-1].cut()
        await bench.drained()
        bench.check_equal()
    assert len(bench.ingest.generations) == 1


@pytest.mark.invariant("I14")
@in_loop
async def test_what_was_given_back_in_vain_is_given_back_by_the_next_connection() -> None:
    """Stored, but the line ends before the tap hears of it: the ring must have room again."""
    bench, rng = make(), random.Random(1)
    async with running(bench):
        await bench.drained()
        bench.tap.free_delay = 3600.0
        guest_writes(bench, rng, 5)
        assert bench.stream.ring is not None
        head = bench.tap.ring.head
        await bench.until(lambda: bench.stream.ring is not None and bench.stream.ring.freed == head)
        assert bench.tap.ring.freed < head
        bench.tap.free_delay = 0.0
        bench.ingest.links[-1].cut()
        await bench.until(lambda: bench.tap.ring.freed == head)
        await bench.drained()
        bench.check_equal()


@pytest.mark.invariant("I16")
@in_loop
async def test_no_salt_and_counter_is_used_twice_over_resends() -> None:
    bench, rng = make(replication=1e6), random.Random(5)
    async with running(bench):
        for _ in range(8):
            guest_writes(bench, rng, 10)
            await asyncio.sleep(0.1)
            bench.ingest.links[-1].cut()
        await bench.drained()
    pairs = bench.ingest.counters
    assert len(pairs) > 8
    assert len(set(pairs)) == len(pairs)
    assert len({salt for salt, _ in pairs}) > 1


@in_loop
async def test_ring_full_becomes_a_sync_and_ends_equal() -> None:
    bench, rng = make(), random.Random(2)
    async with running(bench):
        await bench.drained()
        bench.ingest.down = True
        bench.ingest.links[-1].cut()
        while bench.tap.state.name != "DIRTY":
            guest_writes(bench, rng, 20)
        guest_writes(bench, rng, 20)
        bench.ingest.down = False
        bench.stream.nudge()
        await bench.drained()
        bench.check_equal()
    assert len(bench.ingest.generations) == 1


@in_loop
async def test_nothing_is_freed_before_it_is_stored() -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        freed = bench.tap.ring.freed
        bench.ingest.holds_back = True
        guest_writes(bench, random.Random(3), 30)
        await bench.until(lambda: bench.stream.figures.counters.records_sent >= bench.tap.ring.head)
        await asyncio.sleep(0.05)
        assert bench.tap.ring.freed == freed
        bench.ingest.links[-1].commit()
        await bench.drained()


@pytest.mark.invariant("I10")
@in_loop
async def test_journal_with_another_hash_begins_a_new_generation() -> None:
    bench, rng = make(), random.Random(4)
    async with running(bench):
        guest_writes(bench, rng, 10)
        await bench.drained()
        before = bench.tap.ring.generation
        bench.ingest.lie_about_hash = True
        bench.ingest.links[-1].cut()
        await bench.until(lambda: bench.tap.ring.generation != before)
        bench.ingest.lie_about_hash = False
        await bench.drained()
        bench.check_equal()
    assert bench.tap.cause == "journal_differs"


@in_loop
async def test_journal_that_lost_stored_data_begins_a_new_generation() -> None:
    bench, rng = make(), random.Random(4)
    async with running(bench):
        guest_writes(bench, rng, 50)
        await bench.drained()
        bench.ingest.generations.clear()
        bench.ingest.links[-1].cut()
        await bench.until(lambda: len(bench.ingest.generations) > 1, 5)
        await bench.drained()
        bench.check_equal()


@pytest.mark.parametrize("code", ["fenced", "replaced", "equivocation", "generation_ended"])
@in_loop
async def test_a_stream_that_somebody_else_has_stops_until_a_person_acts(code: str) -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        bench.ingest.links[-1].say(Close(code, "Somebody else."))
        await bench.until(lambda: bench.stream.is_stopped)
        sessions = len(bench.ingest.links)
        bench.tap.write(0, b"x" * 512)
        await asyncio.sleep(0.3)
        assert len(bench.ingest.links) == sessions
        assert bench.stream.decider.alert is not None
        assert bench.stream.decider.alert.code == code
        bench.stream.resume()
        await bench.drained()
        bench.check_equal()


@in_loop
async def test_a_probe_is_answered_with_what_the_tap_states_then() -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        link = bench.ingest.links[-1]
        bench.tap.write(0, b"y" * 512)
        head = bench.tap.ring.head
        link.probe()
        await bench.until(lambda: bool(link.probed))
        generation = bench.tap.ring.generation.hex()
        assert link.probed == [Probed(1, generation, head, 1)]


@in_loop
async def test_a_probe_is_not_answered_with_an_old_state() -> None:
    """The tap answers later than 250 ms after it was asked: that answer never leaves."""
    bench = make()
    bench.settings = replace(bench.settings, silence_seconds=10.0)
    async with running(bench):
        await bench.drained()
        link = bench.ingest.links[-1]
        bench.tap.state_delay = 0.4
        link.probe()
        await asyncio.sleep(0.6)
        assert not link.probed
        bench.tap.state_delay = 0.0
        await bench.until(lambda: bool(link.probed), 2)


@in_loop
async def test_a_silent_ingest_is_given_up() -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        sessions = len(bench.ingest.links)
        await bench.until(lambda: len(bench.ingest.links) > sessions, 3)


@in_loop
async def test_a_checkpoint_that_is_waited_for_is_hurried() -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        bench.ingest.commit_seconds = 30
        body = {"checkpoint": "ab" * 16, "kind": "tagged", "tag": "t", "scope": "stream"}
        generation, seq, _ = await bench.stream.mark(dict(body))
        async with asyncio.timeout(0.5):
            await bench.stream.wait_stored(generation, seq)
        assert seq in bench.ingest.commits_now
        markers = [m for header, _, _ in bench.ingest.newest.frames for m in header.markers]
        assert [(m.checkpoint.hex(), m.seq, m.scope, m.kind) for m in markers] == [
            ("ab" * 16, seq, 1, 3)
        ]


@in_loop
async def test_paused_stream_sends_nothing_and_discards_nothing() -> None:
    bench, rng = make(), random.Random(6)
    async with running(bench):
        await bench.drained()
        bench.stream.pause()
        await bench.until(lambda: bench.stream.connection is None)
        arrived = len(bench.ingest.arrivals)
        guest_writes(bench, rng, 10)
        await asyncio.sleep(0.2)
        assert len(bench.ingest.arrivals) == arrived
        bench.stream.resume()
        await bench.drained()
        bench.check_equal()
    assert len(bench.ingest.generations) == 1


@in_loop
async def test_a_pause_while_it_connects_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        begin, paused = bench.stream._begin, asyncio.Event()

        async def paused_meanwhile(ring: OpenRing, link: Link) -> Connection:
            connection = await begin(ring, link)
            bench.stream.pause()
            paused.set()
            return connection

        monkeypatch.setattr(bench.stream, "_begin", paused_meanwhile)
        bench.ingest.links[-1].cut()
        await paused.wait()
        monkeypatch.undo()
        stored = bench.ingest.generations[-1].stored
        guest_writes(bench, random.Random(8), 5)
        await asyncio.sleep(0.3)
        assert bench.ingest.generations[-1].stored == stored
        bench.stream.resume()
        await bench.drained()
        bench.check_equal()


@in_loop
async def test_lost_data_key_costs_a_new_generation_and_no_unreadable_frame() -> None:
    bench, rng = make(), random.Random(7)
    async with running(bench):
        guest_writes(bench, rng, 10)
        await bench.drained()
        bench.keys.kept.clear()
        await bench.restart()
        await bench.until(lambda: len(bench.ingest.generations) == 2)
        await bench.drained()
        bench.check_equal()


@in_loop
async def test_restarted_tap_is_opened_again() -> None:
    bench, rng = make(), random.Random(8)
    async with running(bench):
        guest_writes(bench, rng, 10)
        await bench.drained()
        bench.tap.is_gone = True
        bench.tap._notify()
        await bench.until(lambda: bench.stream.ring is None)
        bench.tap.is_gone = False
        bench.tap.new_generation("unclean_stop")
        guest_writes(bench, rng, 10)
        await bench.drained()
        bench.check_equal()


@in_loop
async def test_resync_brings_everything_in_a_new_generation() -> None:
    bench, rng = make(), random.Random(9)
    async with running(bench):
        guest_writes(bench, rng, 10)
        await bench.drained()
        before = bench.tap.ring.generation
        bench.stream.resync()
        await bench.until(lambda: bench.tap.ring.generation != before)
        await bench.drained()
        bench.check_equal()
    assert bench.tap.cause == "forced"


@in_loop
async def test_corrupt_ring_is_never_sent() -> None:
    bench, rng = make(), random.Random(10)
    async with running(bench):
        await bench.drained()
        bench.ingest.down = True
        bench.ingest.links[-1].cut()
        await bench.until(lambda: bench.stream.connection is None)
        bench.tap.write(0, rng.randbytes(4096))
        ring = bench.tap.ring
        at = ring.payload_at + (ring.payload_head - 100) % ring.size
        os.pwrite(ring.descriptor, b"\xff\x00\xff", at)
        before = ring.generation
        bench.ingest.down = False
        bench.stream.nudge()
        await bench.until(lambda: bench.tap.ring.generation != before)
        await bench.drained()
        bench.check_equal()
    assert bench.tap.cause == "ring_lost"


@in_loop
async def test_window_bounds_what_is_in_flight() -> None:
    bench = make()
    bench.ingest.window_bytes = 64 * 1024
    async with running(bench):
        await bench.drained()
        bench.ingest.holds_back = True
        sent = bench.stream.figures.counters.wire_bytes_sent
        for _ in range(40):
            guest_writes(bench, random.Random(11), 1)
            await asyncio.sleep(0.01)
        in_flight = bench.stream.figures.counters.wire_bytes_sent - sent
        assert 0 < in_flight <= 64 * 1024 + 32 * 1024
        bench.ingest.holds_back = False
        bench.ingest.links[-1].commit()
        await bench.drained()
        bench.check_equal()


@in_loop
async def test_rate_is_held_at_the_receiver() -> None:
    bench = make(replication=400_000.0)
    bench.tap.ring_bytes = 4 << 20
    async with running(bench):
        await bench.drained()
        began, rng = len(bench.ingest.arrivals), random.Random(12)
        for _ in range(100):
            bench.tap.write(512 * rng.randint(0, 400), rng.randbytes(8192))
        await bench.drained()
        arrivals = bench.ingest.arrivals[began:]
        seconds = arrivals[-1][0] - arrivals[0][0]
        total = sum(size for _, size in arrivals)
        assert total > 800_000
        rate = (total - arrivals[-1][1]) / seconds
        assert 0.8 * 400_000 <= rate <= 1.15 * 400_000


@in_loop
async def test_idle_stream_asks_the_tap_rarely() -> None:
    bench = make()
    async with running(bench):
        await bench.drained()
        await asyncio.sleep(0.05)
        before = len(bench.tap.calls)
        bench.ingest.links[-1].probe()
        await asyncio.sleep(0.3)
        assert len(bench.tap.calls) - before < 12
