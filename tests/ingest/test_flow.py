"""The ordinary life of a stream: begin, commit, acknowledge, leave, come back."""

from __future__ import annotations

import time

import pytest

from host_agent.wire.names import chain_prefix
from host_agent.wire.record import State
from host_agent.wire.segment import KIND_EPOCH
from tests.ingest.conftest import Connect, MakeSource
from tests.ingest.reading import read_chain
from tests.servers.agent import Source
from tests.servers.ingest_process import IngestProcess, IngestSetup, running_ingest
from workers.storage.port import ObjectStore


@pytest.mark.invariant("I2")
def test_stored_positions_are_in_the_store(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """I2: whenever STORED arrives, the store already has every position up to it."""
    agent = connect(ingest, source)
    welcome = agent.hello()
    assert (welcome.begin, welcome.stored, welcome.generation) == ("new_generation", 0, None)
    assert (welcome.epoch, welcome.place) == (1, 1)
    for _ in range(5):
        source.write(20)
        agent.send_frame()
        agent.wait_stored()
        assert read_chain(store, source).seqs == list(range(1, source.head + 1))
    last = agent.stored_messages[-1]
    assert last.epoch == 1
    assert last.place == 1 + len(agent.stored_messages)
    assert last.generation == source.generation.hex()


def test_many_frames_become_few_segments(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    agent = connect(ingest, source)
    agent.hello(commit_seconds=1.0)
    for _ in range(60):
        source.write(3)
        agent.send_frame()
    agent.wait_stored()
    chain = read_chain(store, source)
    assert sum(segment.frames for segment in chain.data) == 60
    assert len(chain.data) <= 2


def test_large_batch_is_committed_before_its_age(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    agent = connect(ingest, source)
    agent.hello(commit_seconds=5.0)
    began = time.monotonic()
    for _ in range(20):
        source.write(1, length=1024 * 1024)
        agent.send_frame()
    agent.read_until(lambda: agent.stored > 0)
    assert time.monotonic() - began < 4.5
    assert agent.received > 0
    agent.wait_stored()
    assert read_chain(store, source).seqs[-1] == source.head


def test_commit_now_commits_at_once(
    ingest: IngestProcess, connect: Connect, source: Source
) -> None:
    agent = connect(ingest, source)
    agent.hello(commit_seconds=5.0)
    began = time.monotonic()
    agent.commit_now(source.head)
    agent.send_frame()
    agent.wait_stored()
    source.write(1)
    agent.send_frame()
    agent.commit_now(source.head)
    agent.wait_stored()
    assert time.monotonic() - began < 2.5


def test_commit_age_is_bounded_by_configuration(
    setup: IngestSetup, connect: Connect, source: Source
) -> None:
    setup.settings = {"commit_seconds_min": 0.6, "commit_seconds_max": 1.0}
    with running_ingest(setup) as ingest:
        for asked, low, high in [(0.0, 0.55, 5.0), (3600.0, 0.95, 5.0)]:
            agent = connect(ingest, source)
            agent.hello(commit_seconds=asked)
            source.write(1)
            began = time.monotonic()
            agent.send_frame()
            agent.wait_stored()
            assert low < time.monotonic() - began < high
            agent.leave()


@pytest.mark.invariant("I2")
def test_resume_goes_on_where_the_store_ends(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """I2: what was stored is known after a reconnect, with its record hash."""
    agent = connect(ingest, source)
    agent.hello()
    source.write(10)
    agent.send_frame()
    agent.wait_stored()
    stored = agent.stored
    agent.leave()

    source.write(10)
    again = connect(ingest, source)
    welcome = again.hello()
    assert (welcome.begin, welcome.stored, welcome.epoch) == ("resume", stored, 2)
    assert welcome.record_hash == source.hashes[stored].hex()
    assert welcome.generation == source.generation.hex()
    assert welcome.state == State.RECORDING
    again.send_frame()
    again.wait_stored()
    chain = read_chain(store, source)
    assert chain.seqs[-1] == source.head
    assert chain.epochs == [1, 2]


def test_what_was_received_is_stored_when_the_agent_vanishes(
    ingest: IngestProcess, connect: Connect, source: Source
) -> None:
    agent = connect(ingest, source)
    agent.hello(commit_seconds=5.0)
    source.write(5)
    agent.send_frame()
    time.sleep(0.3)
    agent.leave()
    assert connect(ingest, source).hello().stored == source.head


def test_resume_after_a_restart_of_ingest(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore
) -> None:
    for round_ in range(3):
        with running_ingest(setup) as ingest:
            agent = connect(ingest, source)
            welcome = agent.hello()
            assert welcome.stored == (source.head if round_ else 0)
            source.write(7)
            agent.send_frame()
            agent.wait_stored()
            agent.leave()
            assert ingest.stop() == 0
    assert read_chain(store, source).epochs == [1, 2, 3]


def test_orderly_stop_commits_what_it_has_and_says_so(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore
) -> None:
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello(commit_seconds=5.0)
        source.write(5)
        agent.send_frame()
        time.sleep(0.3)
        began = time.monotonic()
        ingest.process.terminate()
        close = agent.wait_close()
        assert close is not None
        assert (close.code, close.retry_seconds) == ("stopping", 1.0)
        assert agent.stored == source.head
        assert ingest.stop() == 0
        assert time.monotonic() - began < 5
        assert not setup.status_socket.exists()
    assert read_chain(store, source).seqs[-1] == source.head


def test_idle_stream_makes_no_objects(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """Probes go on, the RPO stays small, and the store is not asked for anything."""
    setup.settings = {"probe_seconds": 0.1}
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello()
        agent.send_frame()
        agent.wait_stored()
        before = [entry.name for entry in store.list(chain_prefix(source.identity))]
        agent.read_for(2.0)
        assert agent.probes > 10
        assert [entry.name for entry in store.list(chain_prefix(source.identity))] == before
        assert list(store.list("acme/asof/")) == []
        stream = ingest.stream()
        assert stream["rpo_seconds"] < 1.0
        assert stream["held_up_by"] is None


def test_streams_of_several_groups_and_hosts_are_apart(
    ingest: IngestProcess, connect: Connect, make_source: MakeSource, store: ObjectStore
) -> None:
    names = [("shop", "host1"), ("shop", "host2"), ("ledger", "host1")]
    sources = [make_source(group, host, seed) for seed, (group, host) in enumerate(names)]
    agents = [connect(ingest, source) for source in sources]
    for agent in agents:
        agent.hello()
    for _ in range(3):
        for agent in agents:
            agent.source.write(5)
            agent.send_frame()
    for agent in agents:
        agent.wait_stored()
    for source in sources:
        chain = read_chain(store, source)
        assert chain.seqs[-1] == source.head
        assert chain.segments[0].kind == KIND_EPOCH


def test_figures_add_up(ingest: IngestProcess, connect: Connect, source: Source) -> None:
    """In minus out equals held, at every look."""
    agent = connect(ingest, source)
    agent.hello(commit_seconds=0.3)
    for _ in range(20):
        source.write(10)
        agent.send_frame()
        stream = ingest.stream()
        held = stream["bytes_in"] - stream["bytes_stored"] - stream["bytes_dropped"]
        assert stream["bytes_held"] == held >= 0
        assert stream["stored"] <= stream["received"] <= source.head
    agent.wait_stored()
    agent.read_for(0.1)
    stream, status = ingest.stream(), ingest.status()
    assert stream["bytes_in"] == stream["bytes_stored"] > 20 * 10 * 4096
    assert stream["bytes_held"] == status["memory_held_bytes"] == 0
    assert stream["frames_in"] == 20
    assert stream["stored"] == stream["received"] == source.head
