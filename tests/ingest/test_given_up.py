"""Writers of a chain whose beginning was given up: they find its end, and no name comes back."""

from __future__ import annotations

import random
import time

import pytest

from host_agent.wire.names import chain_name
from tests.journal.folding import HOUR, NS, ClockedStore, LongBuilder, Site, latest
from tests.model.workload import Shape, Workload
from workers.ingest import chain
from workers.ingest.batch import Batch, ReceivedFrame
from workers.ingest.chain import ChainWriter, Fenced, SegmentLost, WriterName
from workers.journal.boundary import newest_boundary
from workers.journal.reader import open_journal

SHAPE = Shape({"root": 32}, operations=120, segment_chance=0.5, generation_chance=0)


def writer_of(builder: LongBuilder, store: ClockedStore, name: bytes = b"w" * 16) -> ChainWriter:
    return ChainWriter(store, WriterName(builder.identity, name), lambda: builder.now)


@pytest.mark.invariant("I2")
def test_a_writer_finds_the_end_behind_what_was_given_up() -> None:
    site = Site.make(3, SHAPE)
    site.fold()
    site.store.now += 25 * HOUR * NS
    assert site.collect().deleted > 10
    wanted = latest(site)
    for _ in range(3):
        writer = writer_of(site.builder, site.store)
        end = writer.find_end()
        assert end is not None
        assert writer.claim().place == end.place + 1
    assert latest(site) == wanted
    boundary = newest_boundary(site.store, site.builder.identity)
    assert boundary is not None
    del site.store.objects[chain_name(site.builder.identity, boundary.first_place)]
    with pytest.raises(SegmentLost):
        writer_of(site.builder, site.store).find_end()


def stalled() -> tuple[LongBuilder, ClockedStore, ChainWriter, Batch]:
    """A writer that was about to append when it stalled; others went on, folded, collected."""
    rng = random.Random(5)
    store = ClockedStore()
    builder = LongBuilder(store, rng=rng)
    Workload(builder, SHAPE, rng).run()
    store.now = builder.now
    zombie = writer_of(builder, store, builder.writer)
    zombie.find_end()
    zombie._epoch = builder.epoch
    builder.write(0, 0, b"\1" * 512)
    builder.frame()
    batch = Batch()
    for frame in builder._frames:
        parts = memoryview(bytes(frame.index) + bytes(frame.payload))
        batch.add(ReceivedFrame(frame.header, bytes(frame.header_bytes), parts), time.monotonic())
    # A newer writer claims the stream; what the older one held is sent to it again.
    held, builder._frames = builder._frames, []
    builder.claim()
    builder._frames = held
    builder.segment()
    for _ in range(40):
        builder.write(0, 512, b"\2" * 512)
        builder.segment()
    store.now = builder.now
    return builder, store, zombie, batch


def give_up(builder: LongBuilder, store: ClockedStore) -> None:
    site = Site(builder, store)
    site.fold()
    store.now += 25 * HOUR * NS
    assert site.collect().deleted > 10


@pytest.mark.invariant("I7")
def test_a_writer_that_stalled_past_the_grace_stores_nothing() -> None:
    """Its name is free again, and creating it succeeds: the boundary says that it is too late."""
    builder, store, zombie, batch = stalled()
    give_up(builder, store)
    with pytest.raises(Fenced):
        zombie.append(batch)
    with pytest.raises(Fenced):
        zombie.append(batch)
    site = Site(builder, store)
    assert site.collect().deleted == 1
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        assert journal.damage is None


@pytest.mark.invariant("I7")
def test_a_writer_that_stalled_less_finds_its_place_taken() -> None:
    _, _, zombie, batch = stalled()
    with pytest.raises(Fenced):
        zombie.append(batch)


@pytest.mark.invariant("I7")
def test_a_claim_that_stalled_past_the_grace_claims_nothing() -> None:
    builder, store, zombie, _ = stalled()
    give_up(builder, store)
    with pytest.raises(Fenced):
        zombie.claim()


def test_control_without_the_boundary_a_lost_segment_would_be_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder, store, zombie, batch = stalled()
    give_up(builder, store)
    monkeypatch.setattr(chain, "STALL_SECONDS", 10**9)
    acknowledged = zombie.append(batch)
    boundary = newest_boundary(store, builder.identity)
    assert boundary is not None
    assert acknowledged.place < boundary.first_place


def test_a_busy_writer_pays_nothing() -> None:
    """The boundary is read after a pause only."""
    site = Site.make(3, SHAPE)
    writer = writer_of(site.builder, site.store)
    writer.find_end()
    reads = site.store.reads
    writer.claim()
    assert site.store.reads == reads
    site.store.now += (chain.STALL_SECONDS + 1) * NS
    writer.claim()
    assert site.store.reads == reads + 1
