"""How far a stream is safe: never stated better than it is, and written down for a restore."""

from __future__ import annotations

import random
import time

import msgspec
import pytest

from host_agent.wire.record import State
from tests.ingest.conftest import Connect, MakeSource
from tests.servers.agent import Source
from tests.servers.ingest_process import IngestSetup, running_ingest
from workers.ingest.asof import newest_number
from workers.ingest.rpo import (
    ANSWER_AGE_SECONDS_MAX,
    STATEMENTS_MAX,
    Moment,
    Progress,
    RpoTracker,
    stage,
)
from workers.storage.port import ObjectStore


def _at(seconds: float) -> Moment:
    return Moment(seconds, int(seconds * 1e9))


class TestTracker:
    def test_idle_stream_is_safe_up_to_the_probe(self) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        assert tracker.rpo_seconds(5) is None
        tracker.probed(1, _at(100))
        tracker.stated(1, 10, State.RECORDING, _at(100.4))
        assert tracker.rpo_seconds(101) == pytest.approx(1.0)

    def test_head_must_be_stored_first(self) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        tracker.probed(1, _at(100))
        tracker.stated(1, 15, State.RECORDING, _at(100.1))
        assert tracker.safe is None
        tracker.stored(14)
        assert tracker.safe is None
        tracker.stored(15)
        assert tracker.rpo_seconds(103) == pytest.approx(3.0)

    @pytest.mark.parametrize("state", [State.DIRTY, State.SYNCING, State.NONE])
    def test_tap_that_has_lost_track_makes_nothing_safe(self, state: State) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        tracker.probed(1, _at(100))
        tracker.stated(1, 10, state, _at(100.1))
        assert tracker.safe is None

    def test_answers_to_no_probe_are_ignored(self) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        tracker.stated(7, 10, State.RECORDING, _at(100))
        tracker.probed(1, _at(100))
        tracker.stated(1, 10, State.RECORDING, _at(101))
        tracker.stated(1, 10, State.RECORDING, _at(200))
        assert tracker.safe == _at(100)

    def test_head_behind_what_is_stored_is_no_statement(self) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        tracker.probed(1, _at(100))
        tracker.stated(1, 9, State.RECORDING, _at(100.1))
        assert tracker.safe is None

    def test_new_session_forgets_what_the_old_one_was_asked(self) -> None:
        tracker = RpoTracker()
        tracker.began(10)
        tracker.probed(1, _at(100))
        tracker.stated(1, 20, State.RECORDING, _at(100.1))
        tracker.began(0)
        tracker.stored(20)
        assert tracker.safe is None

    @pytest.mark.invariant("I11")
    def test_never_better_than_the_truth(self) -> None:
        """I11: against a model that knows every write, in random orders of events."""
        rng = random.Random(11)
        for _ in range(300):
            tracker, now, head, stored, probe = RpoTracker(), 0.0, 0, 0, 0
            written_at: list[float] = []
            asked: dict[int, float] = {}
            for _ in range(rng.randrange(1, 300)):
                now += rng.random()
                event = rng.randrange(4)
                if event == 0:
                    head += 1
                    written_at.append(now)
                elif event == 1:
                    probe += 1
                    asked[probe] = now
                    tracker.probed(probe, _at(now))
                elif event == 2 and asked:
                    number = rng.choice(list(asked))
                    tracker.stated(number, head, State.RECORDING, _at(now))
                    del asked[number]
                elif event == 3:
                    stored = rng.randrange(stored, head + 1)
                    tracker.stored(stored)
                unsafe = written_at[stored] if stored < head else now
                if tracker.safe is not None:
                    assert tracker.safe.monotonic <= unsafe

    @pytest.mark.invariant("I12")
    def test_bounded_when_the_store_falls_behind(self) -> None:
        """I12: thinned statements only make the RPO look worse."""
        tracker = RpoTracker()
        tracker.began(0)
        for number in range(1, 2000):
            tracker.probed(number, _at(number))
            tracker.stated(number, number, State.RECORDING, _at(number + 0.1))
        assert len(tracker._statements) <= STATEMENTS_MAX
        tracker.stored(1500)
        assert tracker.safe is not None
        assert 0 < tracker.safe.monotonic <= 1500


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"connected": False}, "agent"),
        ({"answer_age_seconds": None}, "agent"),
        ({"answer_age_seconds": ANSWER_AGE_SECONDS_MAX + 1}, "agent"),
        ({"state": State.DIRTY}, "sync"),
        ({"state": State.SYNCING}, "sync"),
        ({"received": 12}, "store"),
        ({"head": 11}, "network"),
        ({"head": 15, "received": 12}, "store"),
    ],
)
def test_stage_that_holds_the_rpo_up(changes: dict[str, object], expected: str | None) -> None:
    good: dict[str, object] = {
        "connected": True,
        "head": 10,
        "received": 10,
        "stored": 10,
        "answer_age_seconds": 0.5,
        "state": State.RECORDING,
    }
    assert stage(Progress(**{**good, **changes})) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [[], [1], [1, 2], list(range(1, 100)), list(range(70, 200))])
def test_newest_number_is_found_without_the_old_ones(numbers: list[int]) -> None:
    asked = 0

    def next_after(number: int) -> int | None:
        nonlocal asked
        asked += 1
        return next((each for each in numbers if each > number), None)

    assert newest_number(next_after) == (numbers[-1] if numbers else 0)
    assert asked < 24


@pytest.mark.invariant("I11")
def test_status_is_truthful_through_a_streams_life(
    setup: IngestSetup, connect: Connect, source: Source
) -> None:
    """I11: unknown, then small, then growing while dirty, silent or away."""
    setup.settings = {"probe_seconds": 0.1}
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello()
        assert ingest.stream()["rpo_seconds"] is None
        agent.state = State.SYNCING
        agent.send_frame()
        agent.wait_stored()
        agent.read_for(0.4)
        stream = ingest.stream()
        assert (stream["rpo_seconds"], stream["held_up_by"]) == (None, "sync")
        agent.state = State.RECORDING
        agent.read_for(0.4)
        stream = ingest.stream()
        assert stream["rpo_seconds"] < 0.4
        assert (stream["state"], stream["held_up_by"]) == ("recording", None)
        source.write(1)
        agent.read_for(0.4)  # recorded by the tap, not sent
        stream = ingest.stream()
        assert stream["rpo_seconds"] > 0.25
        assert stream["held_up_by"] == "network"
        agent.send_frame()
        agent.wait_stored()
        agent.read_for(0.4)
        assert ingest.stream()["rpo_seconds"] < 0.4
        agent.leave()
        time.sleep(0.7)
        stream = ingest.stream()
        assert stream["rpo_seconds"] > 0.6
        assert (stream["state"], stream["held_up_by"]) == ("silent", "agent")


def test_statements_are_written_when_they_change(
    setup: IngestSetup, connect: Connect, make_source: MakeSource, store: ObjectStore
) -> None:
    setup.settings = {"probe_seconds": 0.05, "asof_seconds": 0.3}
    one, two = make_source("shop"), make_source("ledger", "host2", seed=2)

    def newest() -> dict[str, object]:
        name = [entry.name for entry in store.list("acme/asof/")][-1]
        content: dict[str, object] = msgspec.json.decode(store.get(name))
        return content

    with running_ingest(setup) as ingest:
        for source in (one, two):
            agent = connect(ingest, source)
            agent.hello()
            source.write(3)
            agent.send_frame()
            agent.wait_stored()
            agent.read_for(0.6)
            agent.leave()
        time.sleep(1.0)
        count = len(list(store.list("acme/asof/")))
        time.sleep(1.0)
        assert len(list(store.list("acme/asof/"))) == count, "nothing changed, nothing is written"
        stated = newest()
        assert stated["at"] > time.time_ns() - 10_000_000_000  # type: ignore[operator]
        streams = stated["streams"]
        assert isinstance(streams, dict)
        assert streams["shop/host1"]["generation"] == one.generation.hex()
        assert streams["shop/host1"]["seq"] == one.head
        assert streams["ledger/host2"]["state"] == "silent"
        assert streams["shop/host1"]["time"] < streams["ledger/host2"]["time"]
    with running_ingest(setup) as ingest:
        agent = connect(ingest, one)
        agent.hello()
        agent.read_for(0.8)
        later = newest()["streams"]
        assert isinstance(later, dict)
        assert later["shop/host1"]["state"] == "recording"
        assert later["shop/host1"]["time"] > streams["shop/host1"]["time"]
        assert later["ledger/host2"] == streams["ledger/host2"], "who is away is not forgotten"
