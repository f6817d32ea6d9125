"""Ingest killed at every step of a commit: nothing acknowledged is lost or stored twice."""

from __future__ import annotations

import time

import pytest

from host_agent.wire.names import chain_name
from tests.ingest.conftest import Connect
from tests.ingest.reading import read_chain
from tests.servers.agent import Agent, Closed, Source
from tests.servers.ingest_process import IngestSetup, running_ingest
from workers.storage.failpoints import EXIT_STATUS
from workers.storage.port import ObjectStore

#: Each crash window, its arrival, and whether its object survives it. The probe at the start
#: creates 4 objects in 49 tries; those of the stream come after.
WINDOWS = [
    ("epoch_after_build_before_create", 1),
    ("epoch_after_create_before_welcome", 1),
    ("key_after_create_before_segment", 1),
    ("segment_after_build_before_create", 1),
    ("segment_after_create_before_stored", 1),
    ("segment_after_build_before_create", 3),
    ("segment_after_create_before_stored", 3),
]
#: The probe at the start arrives up to 53 times; the first ones of the stream come right after.
STORE_WINDOWS = {
    "object_after_sync_before_link": (53, 55, 60, 70),
    "object_after_link_before_directory_sync": (5, 6, 8, 20),
    "object_after_directory_sync_before_answer": (54, 55, 56, 70),
}


def _write_until_closed(agent: Agent, source: Source) -> None:
    with pytest.raises(Closed):
        agent.hello(commit_seconds=0.02)
        for _ in range(80):
            source.write(1)
            agent.send_frame()
            agent.wait_stored()


@pytest.mark.invariant("I2", "I7")
@pytest.mark.parametrize(("window", "arrival"), WINDOWS)
def test_killed_in_a_commit(
    setup: IngestSetup,
    connect: Connect,
    source: Source,
    store: ObjectStore,
    window: str,
    arrival: int,
) -> None:
    """I2: what was acknowledged is there; the stream goes on from what the store has."""
    with running_ingest(setup, {"HOLDFAST_FAILPOINT": f"{window}:{arrival}"}) as ingest:
        agent = connect(ingest, source)
        _write_until_closed(agent, source)
        assert ingest.process.wait(5) == EXIT_STATUS
    acknowledged = agent.stored
    assert len(read_chain(store, source).seqs) >= acknowledged
    with running_ingest(setup) as ingest:
        again = connect(ingest, source)
        welcome = again.hello()
        assert welcome.begin == ("resume" if welcome.generation else "new_generation")
        assert welcome.stored >= acknowledged
        if window == "segment_after_create_before_stored":
            assert welcome.stored > acknowledged
        assert welcome.record_hash == source.hashes[welcome.stored].hex()
        source.write(3)
        again.send_frame()
        again.wait_stored()
    assert read_chain(store, source).seqs == list(range(1, source.head + 1))


@pytest.mark.invariant("I2", "I10")
@pytest.mark.parametrize("window", STORE_WINDOWS)
def test_killed_inside_the_local_store(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore, window: str
) -> None:
    """I10: a name holds a whole object or nothing; what is left over is cleaned up."""
    crashes = 0
    for arrivals in STORE_WINDOWS[window]:
        setup_env = {"HOLDFAST_FAILPOINT": f"{window}:{arrivals}"}
        try:
            with running_ingest(setup, setup_env) as ingest:
                agent = connect(ingest, source)
                _write_until_closed(agent, source)
                acknowledged = agent.stored
                assert ingest.process.wait(5) == EXIT_STATUS
        except RuntimeError:
            continue  # it ended inside the probe at its start
        crashes += 1
        assert len(read_chain(store, source).seqs) >= acknowledged
    assert crashes >= 2
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello()
        source.write(1)
        agent.send_frame()
        agent.wait_stored()
        assert list((setup.directory / "store" / ".unfinished").iterdir()) == []
    assert read_chain(store, source).seqs == list(range(1, source.head + 1))


@pytest.mark.invariant("I2")
def test_killed_again_and_again_under_load(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """I2: `kill -9` at arbitrary moments; STORED never runs ahead of the store."""
    acknowledged = 0
    for round_ in range(6):
        with running_ingest(setup) as ingest:
            agent = connect(ingest, source)
            welcome = agent.hello(commit_seconds=0.02)
            assert welcome.stored >= acknowledged
            deadline = time.monotonic() + 0.15 + 0.05 * round_
            while time.monotonic() < deadline:
                source.write(4, length=16 * 1024)
                agent.send_frame()
                agent.read_for(0.01)
            ingest.kill()
            with pytest.raises(Closed):
                agent.wait_stored(source.head + 1)
            acknowledged = max(acknowledged, agent.stored)
            assert len(read_chain(store, source).seqs) >= acknowledged
    assert acknowledged > 0


@pytest.mark.invariant("I2")
def test_reader_of_these_tests_notices_a_lost_position(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """The negative control: an acknowledged segment that disappears fails the check."""
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello()
        agent.send_frame()
        agent.wait_stored()
        store.delete(chain_name(source.identity, agent.stored_messages[-1].place))
    assert len(read_chain(store, source).seqs) < agent.stored
