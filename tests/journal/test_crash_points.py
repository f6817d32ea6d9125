"""A writer dies before, after or around each request to the store; its successor goes on. What was
acknowledged is restored byte for byte at once, and at the end everything is."""

from __future__ import annotations

import random

import pytest

from host_agent.wire.pieces import Content
from tests.journal.rewriting import Position, Story, judge, write_on
from tests.lanes import pick, tried
from tests.model.store import MemoryStore
from workers.storage.port import Created

pytestmark = pytest.mark.invariant("I2", "I3", "I7")

#: How a request ends when its writer dies: not made, made, or made later: before the successor
#: looks, before its claim, after its claim, after its first segment.
FATES = ("before", "after", "late 0", "late 1", "late 2")
#: Crash points of every run of `make test`: at least so many.
POINTS_MIN = pick(500, 2_000, 20_000)


class Died(Exception):
    """The writer's process ended."""


class MortalStore(MemoryStore):
    """The `at`-th create ends the writer. A late one is carried out by `arrive`."""

    def __init__(self, at: int, fate: str) -> None:
        super().__init__()
        self._left = at
        self._fate = fate
        self._late: tuple[str, bytes] | None = None
        self._due = 0

    def put_if_absent(self, name: str, data: Content) -> Created:
        self._left -= 1
        if self._left == 0:
            if self._fate == "after":
                super().put_if_absent(name, data)
            elif self._fate.startswith("late"):
                self._late, self._due = (name, bytes(data)), int(self._fate[-1])
            raise Died(name)
        if self._left < 0:
            self._count_down()
        return super().put_if_absent(name, data)

    def succeed(self) -> None:
        """A successor begins now."""
        self._count_down()

    def _count_down(self) -> None:
        if self._late is not None:
            if self._due == 0:
                super().put_if_absent(*self._late)
                self._late = None
            self._due -= 1


def _requests(story: Story) -> int:
    store = MortalStore(0, "before")
    write_on(story, store, random.Random(1), lambda position: None)
    return len(store.objects)


def _die_at(story: Story, at: int, fate: str) -> None:
    """One crash point."""
    store, rng = MortalStore(at, fate), random.Random(at)
    acknowledged: list[Position] = [(-1, 0)]
    with pytest.raises(Died):
        write_on(story, store, rng, acknowledged.append)
    if fate in ("before", "after"):
        judge(story, store, acknowledged[-1])
    before = acknowledged[-1]
    store.succeed()
    write_on(story, store, rng, acknowledged.append)
    assert acknowledged == sorted(set(acknowledged)), "a position was stored twice"
    assert all(after > before for after in acknowledged[acknowledged.index(before) + 1 :])
    last = story.batches[-1][0]
    assert judge(story, store, last) == story.newest(last)


def _sweep(seed: int) -> int:
    story = Story.make(seed)
    points = [(at, fate) for at in range(1, _requests(story) + 1) for fate in FATES]
    for at, fate in points:
        _die_at(story, at, fate)
    return len(points)


@pytest.mark.timeout(0)
def test_a_writer_may_die_at_every_request() -> None:
    """For every request of several stories, in every way."""
    points, seed = 0, 0
    while points < POINTS_MIN:
        seed += 1
        points += _sweep(seed)
    tried("journal crash points", points)
    assert points >= POINTS_MIN


@pytest.mark.parametrize("wrong", ["acknowledged too early", "another byte"])
def test_control_the_judge_notices(wrong: str) -> None:
    """Were STORED said before the store has it, or were one byte of an image another."""
    story = Story.make(1)
    at = _requests(story)
    store, acknowledged = MortalStore(at, "before"), [(-1, 0)]
    with pytest.raises(Died):
        write_on(story, store, random.Random(at), acknowledged.append)
    assert judge(story, store, acknowledged[-1]) is not None
    last = story.batches[-1][0]
    if wrong == "another byte":
        last = acknowledged[-1]
        newest = story.newest(last)
        assert newest is not None
        image = story.images[newest]["root"]
        story.images[newest]["root"] = bytes([image[0] ^ 1]) + image[1:]
    with pytest.raises(AssertionError):
        judge(story, store, last)
