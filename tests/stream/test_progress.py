"""Recovery point, blame and counts: never better than the truth."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from host_agent.stream.ports import SyncStep, TapState
from host_agent.stream.progress import (
    Counters,
    RecoveryPoint,
    Situation,
    SyncProgress,
    Tally,
    Waits,
    blame,
)
from host_agent.wire.record import State

SECOND = 1_000_000_000


def tap(head: int, at: float, state: State = State.RECORDING) -> TapState:
    return TapState(bytes(16), head, state, None, int(at * SECOND))


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("seed", range(20))
def test_recovery_point_is_never_newer_than_the_truth(seed: int) -> None:
    """Writes, observations and commits at random; the truth is the oldest write not stored."""
    rng, point = random.Random(seed), RecoveryPoint()
    writes: list[float] = []
    stored, now = 0, 1000.0
    for _ in range(3000):
        now += rng.random() * 0.01
        what = rng.random()
        if what < 0.5:
            writes.append(now)
        elif what < 0.9:
            point.observe(tap(len(writes), now), now, stored)
        else:
            stored = rng.randint(stored, len(writes))
            point.on_stored(stored)
        truth = now - writes[stored] if stored < len(writes) else 0.0
        shown = point.age_seconds(int(now * SECOND), now)
        assert shown is None or shown >= truth - 1e-6


def test_a_jump_of_one_clock_does_not_flatter() -> None:
    point = RecoveryPoint()
    point.observe(tap(5, 1000.0), 50.0, 5)
    assert point.age_seconds(1000 * SECOND, 60.0) == pytest.approx(10.0)
    assert point.age_seconds(1030 * SECOND, 51.0) == pytest.approx(30.0)


def test_dirty_and_syncing_advance_nothing() -> None:
    point = RecoveryPoint()
    point.observe(tap(5, 1.0, State.DIRTY), 1.0, 5)
    point.observe(tap(5, 2.0, State.SYNCING), 2.0, 5)
    assert point.age_seconds(2 * SECOND, 2.0) is None


def test_observations_are_bounded_and_dropping_them_only_ages() -> None:
    point = RecoveryPoint()
    for number in range(10_000):
        point.observe(tap(number + 1, 100.0 + number / 1000), 100.0 + number / 1000, 0)
    point.on_stored(5000)
    age = point.age_seconds(int(110 * SECOND), 110.0)
    assert age is not None
    assert 5.0 <= age <= 5.6


HEALTHY = Situation(
    phase="streaming",
    failure=None,
    state=State.RECORDING,
    head=100,
    sent=100,
    stored=100,
    rpo_seconds=0.5,
    commit_seconds=1.0,
    waits={},
)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, None),
        ({"phase": "paused"}, "paused"),
        ({"phase": "stopped"}, "stopped"),
        ({"phase": "no_tap"}, "tap"),
        ({"phase": "connecting", "failure": "connection_lost"}, "network"),
        ({"phase": "connecting", "failure": "store_error"}, "store"),
        ({"phase": "connecting", "failure": "not_authorised"}, "ingest"),
        ({"state": State.SYNCING, "rpo_seconds": 60.0}, "ring"),
        ({"head": 900, "rpo_seconds": 60.0, "waits": {"pace": 0.9}}, "pace"),
        ({"head": 900, "rpo_seconds": 60.0, "waits": {"window": 0.9}}, "ingest"),
        ({"head": 900, "rpo_seconds": 60.0, "waits": {"network": 0.9}}, "network"),
        ({"head": 900, "rpo_seconds": 60.0, "waits": {"prepare": 0.9}}, "guest"),
        ({"stored": 50, "rpo_seconds": 60.0}, "store"),
        ({"stored": 50, "rpo_seconds": 60.0, "waits": {"network": 0.8}}, "network"),
    ],
)
def test_each_stage_is_blamed_for_what_it_holds_up(
    changes: dict[str, object], stage: str | None
) -> None:
    assert blame(replace(HEALTHY, **changes)) == stage  # type: ignore[arg-type]


def test_waits_fade_and_never_exceed_the_whole() -> None:
    waits = Waits(0.0)
    now = 0.0
    for _ in range(100):
        now += 0.1
        waits.add("pace", 0.08, now)
    assert waits.shares(now)["pace"] == pytest.approx(0.8, abs=0.1)
    assert waits.shares(now + 60)["pace"] < 0.01


def test_in_minus_stored_minus_dropped_is_held_over_generations() -> None:
    counters = Counters()
    tally, rng = Tally(counters), random.Random(1)
    for generation in range(5):
        head = rng.randint(0, 50)
        freed = rng.randint(0, head)
        tally.on_ring(bytes([generation]) * 16, freed, head)
        stored = freed
        for _ in range(20):
            head += rng.randint(0, 9)
            tally.on_head(head)
            stored = rng.randint(stored, head)
            tally.on_stored(stored)
            assert counters.records_held == head - stored
    assert counters.records_dropped > 0


def test_reopening_the_same_ring_counts_nothing_twice() -> None:
    counters = Counters()
    tally = Tally(counters)
    for _ in range(3):
        tally.on_ring(b"g" * 16, 10, 40)
        tally.on_stored(25)
    assert (counters.records_in, counters.records_stored, counters.records_held) == (30, 15, 15)


def test_what_is_sent_again_is_counted_apart() -> None:
    counters = Counters()
    tally = Tally(counters)
    tally.on_ring(b"g" * 16, 0, 100)
    for first, last in ((1, 40), (41, 60), (31, 50), (51, 80)):
        tally.on_sent(first, last)
    assert (counters.records_sent, counters.records_sent_again) == (110, 30)


def test_sync_progress_predicts_its_end() -> None:
    sync = SyncProgress()
    now = 0.0
    for step in range(100):
        now += 0.1
        left = 1_000_000_000 - (step + 1) * 1_000_000
        sync.on_step(
            SyncStep(State.SYNCING, 1_000_000, left, 1_000_000_000, busy=False), "forced", now
        )
    eta = sync.eta_seconds(now)
    assert eta == pytest.approx(90.0, rel=0.15)
    sync.on_recording()
    assert sync.eta_seconds(now) is None
