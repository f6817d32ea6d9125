"""Writes a built journal again with the real writer, which may die anywhere; and judges what is
left by the model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from host_agent.wire.errors import HoldfastError
from host_agent.wire.frame import FrameHeader
from host_agent.wire.names import key_name
from host_agent.wire.segment import KIND_DATA
from tests.journal.forging import RawFrame, take_apart
from tests.model.builder import START_AT, JournalBuilder
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from tests.restore.replay import moments
from workers.ingest.batch import Batch, ReceivedFrame
from workers.ingest.chain import ChainWriter, WriterName
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.storage.port import ObjectStore

SHAPE = Shape(
    {"root": 16, "data": 9},
    operations=30,
    segment_chance=0.35,
    frame_chance=0.5,
    generation_chance=0.04,
    resync_chance=0.04,
)

#: (number of the generation, sequence).
Position = tuple[int, int]


@dataclass
class Story:
    """A journal's segments in order, and the image of each moment that may be chosen."""

    builder: JournalBuilder
    batches: list[tuple[Position, bytes, Batch]] = field(default_factory=list)
    images: dict[Position, dict[str, bytes]] = field(default_factory=dict)

    @classmethod
    def make(cls, seed: int, shape: Shape = SHAPE) -> Story:
        """One seed's story."""
        rng = random.Random(seed)
        store = MemoryStore()
        builder = JournalBuilder(store, rng=rng)
        Workload(builder, shape, rng).run()
        story = cls(builder)
        for segment in take_apart(store.objects, builder.identity):
            if segment.info.kind == KIND_DATA:
                generation = segment.info.generation
                position = (builder.generations.index(generation), segment.info.last_seq)
                key = store.objects[key_name(builder.identity, generation)]
                story.batches.append((position, key, _batch(segment.frames)))
        for moment in moments(builder):
            if moment.may_be_chosen:
                found = moment.recorded
                story.images[found.generation, found.seq] = moment.images
        return story

    def newest(self, upto: Position) -> Position | None:
        """The newest moment that may be chosen, not after a position."""
        return max((position for position in self.images if position <= upto), default=None)


def _batch(frames: list[RawFrame]) -> Batch:
    batch = Batch()
    for frame in frames:
        header = FrameHeader.unpack(frame.header_bytes)
        parts = memoryview(frame.index + frame.payload)
        batch.add(ReceivedFrame(header, frame.header_bytes, parts), 0.0)
    return batch


class _Clock:
    """Ingest's wall clock, a second a look."""

    def __init__(self, start: int) -> None:
        self.now = start

    def __call__(self) -> int:
        self.now += 10**9
        return self.now


def write_on(
    story: Story,
    store: ObjectStore,
    rng: random.Random,
    acknowledge: Callable[[Position], None],
) -> None:
    """What an ingest does: find the end, claim, and append what is not there yet. `acknowledge`
    hears of each position when it is stored."""
    name = WriterName(story.builder.identity, rng.randbytes(16))
    writer = ChainWriter(store, name, _Clock(START_AT + 3600 * 10**9))
    writer.find_end()
    end = writer.claim()
    done: Position = (-1, 0)
    if any(end.generation):
        done = (story.builder.generations.index(end.generation), end.last_seq)
    generation = done[0]
    for position, key, batch in story.batches:
        if position <= done:
            continue
        if position[0] != generation:
            made = writer.make_key(batch.frames[0].header.generation, key)
            assert made.value == "same"
            generation = position[0]
        writer.append(batch)
        acknowledge(position)


def judge(story: Story, store: ObjectStore, acknowledged: Position) -> Position | None:
    """Restore the newest moment and compare it with the model, byte for byte.

    It is not before what was acknowledged. Returns its position; None if nothing may be chosen yet.
    AssertionError for anything else.
    """
    needed = story.newest(acknowledged)
    builder = story.builder
    try:
        with open_journal(store, builder.identity, builder.tenant_key) as journal:
            assert journal.damage is None, journal.damage
            point = resolve(journal, "latest-write")
            found = Images(journal).of(point)
    except HoldfastError as error:
        if needed is not None:
            raise AssertionError(f"{acknowledged} was acknowledged, and is not there") from error
        return None
    generation = builder.generations.index(bytes.fromhex(point.generation_name))
    position = (generation, point.seq)
    assert needed is None or position >= needed, f"{position} is before {needed}"
    assert found == story.images[position], f"{position} is not the model's"
    return position
