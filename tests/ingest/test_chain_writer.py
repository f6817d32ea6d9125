"""A chain's writer alone: whose place it is, and clocks that run back."""

from __future__ import annotations

import copy
import random

import pytest

from host_agent.wire.errors import ChainBroken
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from host_agent.wire.pieces import Content
from tests.ingest.reading import read_chain
from tests.model.store import MemoryStore
from tests.servers.agent import Source
from workers.ingest.batch import Batch, ReceivedFrame
from workers.ingest.chain import ChainWriter, WriterName
from workers.storage.port import Created

_START_NS = 1_767_225_600 * 10**9


@pytest.fixture
def source() -> Source:
    key = TenantKey("acme", bytes(range(32)))
    return Source(Identity("acme", "shop", "host1"), key, random.Random(1), start_ns=_START_NS)


def _batch(source: Source, first: int) -> Batch:
    frame = source.seal(source.sealer(), first, source.head)
    batch = Batch()
    parts = memoryview(frame.index + frame.payload)
    batch.add(ReceivedFrame(frame.header, frame.header_bytes, parts), 0.0)
    return batch


class _Clock:
    def __init__(self) -> None:
        self.now = _START_NS

    def __call__(self) -> int:
        return self.now


def _writer(store: MemoryStore, source: Source, clock: _Clock | None = None) -> ChainWriter:
    writer = ChainWriter(store, WriterName(source.identity, b"w" * 16), clock or _Clock())
    writer.find_end()
    writer.claim()
    assert writer.make_key(source.generation, source.key_object).value == "same"
    return writer


@pytest.mark.invariant("I4", "I11")
def test_commits_do_not_run_back_with_the_wall_clock(source: Source) -> None:
    """A clock that is set back an hour, or a year, stops no commit and orders none before."""
    store, clock = MemoryStore(), _Clock()
    writer = _writer(store, source, clock)
    for step in (0, -3600, -31_536_000, 5):
        clock.now += step * 10**9
        first = source.head
        writer.append(_batch(source, first))
        source.write(1)
    chain = read_chain(store, source)
    committed = [segment.committed_at for segment in chain.segments]
    assert committed == sorted(committed)
    assert len(chain.data) == 4


@pytest.mark.invariant("I7")
def test_a_stranger_of_our_own_epoch_is_a_broken_store_and_no_fence(source: Source) -> None:
    """Two appended at one place in one epoch: the store created a name twice. A person must know,
    and the other's bytes are not taken for a successor's."""
    store = MemoryStore()
    writer = _writer(store, source)
    twin = copy.copy(writer)
    first = source.head
    source.write(1)
    twin.append(_batch(source, first))
    other = source.next_generation()
    with pytest.raises(ChainBroken, match="broke its promise"):
        writer.append(_batch(other, 1))
    assert len(read_chain(store, source).data) == 1


class _Blind(MemoryStore):
    """A store that replaces what exists, and says that it created it."""

    def put_if_absent(self, name: str, data: Content) -> Created:
        self.objects[name] = bytes(data)
        return Created.CREATED


def test_control_a_store_that_replaces_is_noticed_by_the_reader(source: Source) -> None:
    store = _Blind()
    writer = _writer(store, source)
    twin = copy.copy(writer)
    first = source.head
    source.write(1)
    twin.append(_batch(source, first))
    source.write(1)
    writer.append(_batch(source, first))
    twin_end = source.head
    source.write(1)
    twin.append(_batch(source, twin_end))
    with pytest.raises((AssertionError, ChainBroken)):
        read_chain(store, source)
