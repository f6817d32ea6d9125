"""One writer a stream: newer sessions fence older ones, and no late writer is ever believed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from host_agent.wire.names import Identity, chain_name, key_name
from tests.ingest.conftest import Connect, MakeSource
from tests.ingest.reading import read_chain
from tests.servers.agent import Closed, Source
from tests.servers.ingest_process import IngestProcess, IngestSetup, running_ingest
from workers.storage.port import ObjectStore


@pytest.mark.invariant("I7")
def test_newer_session_replaces_the_older(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """I7: in one process the older session commits what it has, then ends."""
    older = connect(ingest, source)
    older.hello(commit_seconds=5.0)
    source.write(5)
    older.send_frame()
    time.sleep(0.2)
    newer = connect(ingest, source)
    welcome = newer.hello()
    close = older.wait_close()
    assert close is not None
    assert close.code == "replaced"
    assert close.retry_seconds is None
    assert older.stored == source.head
    assert (welcome.epoch, welcome.stored) == (2, source.head)
    source.write(5)
    newer.send_frame()
    newer.wait_stored()
    assert read_chain(store, source).epochs == [1, 2]


@pytest.mark.invariant("I7")
def test_older_process_is_fenced_by_a_newer_one(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore, tmp_path: Path
) -> None:
    """I7: two processes know nothing of each other; the chain alone decides."""
    other = IngestSetup(tmp_path / "other", setup.pki, setup.store)
    other.directory.mkdir()
    with running_ingest(setup) as first, running_ingest(other) as second:
        older = connect(first, source)
        older.hello()
        older.send_frame()
        older.wait_stored()
        newer = connect(second, source)
        assert newer.hello().epoch == 2
        source.write(3)
        older.send_frame()
        close = older.wait_close()
        assert close is not None
        assert close.code == "fenced"
        assert older.stored == 1
        newer.send_frame()
        newer.wait_stored()
        assert first.stream()["closes"] == {"fenced": 1}
    chain = read_chain(store, source)
    assert chain.seqs == list(range(1, source.head + 1))
    assert [(segment.epoch, segment.last_seq) for segment in chain.data] == [(1, 1), (2, 4)]


@pytest.mark.invariant("I7")
def test_zombie_that_wakes_up_cannot_append(
    setup: IngestSetup, connect: Connect, source: Source, store: ObjectStore, tmp_path: Path
) -> None:
    """I7: a writer stopped before its commit finds its place taken, whenever it goes on."""
    other = IngestSetup(tmp_path / "other", setup.pki, setup.store)
    other.directory.mkdir()
    with running_ingest(setup) as first, running_ingest(other) as second:
        older = connect(first, source)
        older.hello(commit_seconds=0.5)
        older.send_frame()
        time.sleep(0.2)
        os.kill(first.process.pid, signal.SIGSTOP)
        try:
            newer = connect(second, source)
            assert newer.hello().stored == 0
            source.write(4)
            newer.send_frame()
            newer.wait_stored()
        finally:
            os.kill(first.process.pid, signal.SIGCONT)
        close = older.wait_close()
        assert close is not None
        assert close.code == "fenced"
        assert older.stored == 0
        source.write(1)
        newer.send_frame()
        newer.wait_stored()
    chain = read_chain(store, source)
    assert {segment.epoch for segment in chain.data} == {2}
    assert chain.seqs == list(range(1, source.head + 1))


@pytest.mark.invariant("I7")
def test_two_agents_with_one_identity_never_mix(
    setup: IngestSetup, connect: Connect, make_source: MakeSource, store: ObjectStore
) -> None:
    """I7: a cloned host with the same generation and another history."""
    source, clone = make_source(seed=1), make_source(seed=1)
    assert source.generation == clone.generation
    clone.data_key, clone.key_object = source.data_key, source.key_object
    clone.rng = random.Random(99)
    with running_ingest(setup) as ingest:
        agent = connect(ingest, source)
        agent.hello()
        source.write(5)
        clone.write(5)
        agent.send_frame()
        agent.wait_stored()
        copied = connect(ingest, clone)
        welcome = copied.hello()
        assert welcome.stored == source.head
        assert welcome.record_hash != clone.hashes[welcome.stored].hex()
        # An agent that does not compare is found out by what it repeats.
        copied.sent = 0
        copied.send_frame()
        close = copied.wait_close()
        assert close is not None
        assert close.code == "equivocation"
    assert read_chain(store, source).seqs[-1] == source.head


def test_new_generation_follows_the_old(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    agent = connect(ingest, source)
    agent.hello()
    source.write(5)
    agent.send_frame()
    agent.wait_stored()
    agent.leave()

    following = source.next_generation()
    again = connect(ingest, following)
    welcome = again.hello()
    assert welcome.begin == "new_generation"
    assert welcome.generation == source.generation.hex()
    following.write(3)
    again.send_frame()
    again.wait_stored()
    assert read_chain(store, source).seqs == list(range(1, source.head + 1))
    chain = read_chain(store, following)
    assert chain.seqs == list(range(1, following.head + 1))
    assert chain.data[-1].first_seq == 1
    for each in (source, following):
        assert store.size(key_name(each.identity, each.generation))


@pytest.mark.invariant("I7")
def test_ended_generation_does_not_return(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """I7: a host whose state was restored from an old copy appends nothing."""
    for each in (source, following := source.next_generation()):
        agent = connect(ingest, each)
        agent.hello()
        each.write(2)
        agent.send_frame()
        agent.wait_stored()
        agent.leave()
    objects = len(list(store.list("acme/shop/host1/chain/")))
    for state in (source, source):
        returning = connect(ingest, state)
        with pytest.raises(Closed) as closed:
            returning.hello()
        assert closed.value.code == "generation_ended"
        assert closed.value.close is not None
        assert closed.value.close.retry_seconds is None
    assert len(list(store.list("acme/shop/host1/chain/"))) == objects
    assert connect(ingest, following).hello().begin == "resume"


@pytest.mark.invariant("I16")
def test_other_data_key_for_a_known_generation_is_refused(
    ingest: IngestProcess, connect: Connect, make_source: MakeSource, source: Source
) -> None:
    """I16: the stored key must open every frame of its generation."""
    agent = connect(ingest, source)
    agent.hello()
    agent.send_frame()
    agent.wait_stored()
    agent.leave()
    other = make_source()
    assert other.generation == source.generation
    assert other.key_object != source.key_object
    with pytest.raises(Closed) as closed:
        connect(ingest, other).hello()
    assert closed.value.code == "generation_ended"


def test_generation_whose_key_alone_was_written_may_begin(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    """A writer that died between the key and the first segment leaves nothing in the way."""
    first = connect(ingest, source)
    first.hello()
    first.send_frame()
    first.wait_stored()
    first.leave()
    following = source.next_generation()
    store.put_if_absent(key_name(following.identity, following.generation), following.key_object)
    agent = connect(ingest, following)
    assert agent.hello().begin == "new_generation"
    agent.send_frame()
    agent.wait_stored()
    assert read_chain(store, following).seqs == [1]


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("lost", ["last", "inner"])
def test_lost_object_stops_the_stream_by_name(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore, lost: str
) -> None:
    """I10: an empty place before a later one is a loss, never an end; nothing is appended."""
    agent = connect(ingest, source)
    agent.hello()
    for _ in range(4):
        source.write(1)
        agent.send_frame()
        agent.wait_stored()
    agent.leave()
    last = agent.stored_messages[-1].place
    gone = chain_name(source.identity, last - 1 if lost == "last" else 2)
    kept = store.get(gone)
    store.delete(gone)
    names = [entry.name for entry in store.list("acme/shop/host1/chain/")]
    with running_ingest_beside(ingest) as fresh:
        with pytest.raises(Closed) as closed:
            connect(fresh, source).hello()
        close = closed.value.close
        assert close is not None
        assert close.code == "chain_broken"
        assert f"place {int(gone[-16:], 16)}" in close.message or gone in close.message
        assert close.hint
        assert [entry.name for entry in store.list("acme/shop/host1/chain/")] == names
        store.put_if_absent(gone, kept)  # brought back from a copy
        assert connect(fresh, source).hello().stored == source.head


def running_ingest_beside(
    ingest: IngestProcess,
) -> contextlib.AbstractContextManager[IngestProcess]:
    """A second process over the same store, which remembers nothing."""
    directory = ingest.setup.directory / "beside"
    directory.mkdir()
    return running_ingest(IngestSetup(directory, ingest.setup.pki, ingest.setup.store))


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("damage", ["flip", "cut", "other stream", "not a segment"])
def test_damaged_end_of_the_chain_is_refused_by_name(
    ingest: IngestProcess,
    connect: Connect,
    make_source: MakeSource,
    store: ObjectStore,
    damage: str,
) -> None:
    """I10: nothing is chained to an object that is not what it should be."""
    source, other = make_source(), make_source("ledger", seed=3)
    for each in (source, other):
        agent = connect(ingest, each)
        agent.hello()
        agent.send_frame()
        agent.wait_stored()
        agent.leave()
    name = chain_name(source.identity, 2)
    data = bytearray(store.get(name))
    if damage == "flip":
        data[20] ^= 1
    elif damage == "cut":
        del data[-1:]
    elif damage == "other stream":
        data = bytearray(store.get(chain_name(other.identity, 2)))
    else:
        data = bytearray(b"nothing at all")
    store.delete(name)
    store.put_if_absent(name, data)
    with pytest.raises(Closed) as closed:
        connect(ingest, source).hello()
    assert closed.value.code == "chain_broken"
    assert closed.value.close is not None
    assert closed.value.close.message
    assert connect(ingest, other).hello().begin == "resume"


def test_stranger_in_the_chain_is_named(
    ingest: IngestProcess, connect: Connect, source: Source, store: ObjectStore
) -> None:
    store.put_if_absent("acme/shop/host1/chain/notes", b"hello")
    with pytest.raises(Closed) as closed:
        connect(ingest, source).hello()
    assert closed.value.code == "chain_broken"
    assert "chain/notes" in str(closed.value.close)


def test_identity_of_names_is_exact(make_source: MakeSource) -> None:
    """The negative control of the reader: it would notice a foreign record."""
    assert make_source().identity == Identity("acme", "shop", "host1")
    one, two = make_source(seed=1), make_source(seed=2)
    assert one.generation != two.generation
