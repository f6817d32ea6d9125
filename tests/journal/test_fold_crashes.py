"""Fold and collect stopped at every change of the store, run again: nothing that is kept is lost.

At each point the caller is gone before the change, after it, or after a change whose answer it
never heard; what is left is read as it is, then finished, and both are compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from host_agent.wire.errors import HoldfastError
from tests.journal.folding import HOUR, NS, ONE_HOUR, Site, StoppingStore
from tests.model.workload import Shape
from workers.journal.boundary import list_boundaries, newest_boundary
from workers.journal.collect import CollectOptions, Collector
from workers.journal.pins import pin
from workers.journal.retention import Policy
from workers.journal.scrub import scrub

pytestmark = pytest.mark.invariant("I15")

SHAPE = Shape({"root": 48, "data": 24}, operations=130, segment_chance=0.4, frame_chance=0.5,
              generation_chance=0.01)  # fmt: skip
HOWS = ("before", "after")


@pytest.fixture(scope="module")
def site() -> Site:
    """A journal of some hours with a checkpoint that is kept, never changed itself."""
    made = Site.make(11, SHAPE)
    pin(made.store, made.builder.identity, kept_of(made))
    return made


def kept_of(site: Site) -> str:
    """The first checkpoint."""
    marks = [m.recorded.event.body for m in site.known if m.may_be_chosen and m.recorded.event.body]
    return str(next(body["checkpoint"] for body in marks if "checkpoint" in body))


def stopped(site: Site, act: Callable[[Site], None]) -> Iterator[tuple[str, Site]]:
    """The site after `act` was stopped at each of its changes."""
    for number in count(1):
        for how in HOWS:
            twin = site.twin()
            whole = twin.store
            twin.store = StoppingStore(whole, number, how)  # type: ignore[assignment]
            try:
                act(twin)
            except StoppingStore.Stopped:
                twin.store = whole
                yield f"{how} change {number}", twin
                continue
            assert twin.store.changes < number  # type: ignore[attr-defined]
            return


def both_folds(site: Site) -> None:
    """Two folds, the second over the first's layers."""
    site.fold(Policy(window_seconds=2 * HOUR))
    site.fold(ONE_HOUR)


def collect(site: Site) -> None:
    """One run."""
    site.collect()


def test_fold_at_every_point(site: Site) -> None:
    kept = kept_of(site)
    wanted = site.twin()
    both_folds(wanted)
    points = 0
    for where, twin in stopped(site, both_folds):
        assert twin.check(lambda c: c == kept, every=5) == [], where
        both_folds(twin)
        assert twin.check(lambda c: c == kept, every=5) == [], where
        newest = newest_boundary(twin.store, twin.builder.identity)
        there = newest_boundary(wanted.store, wanted.builder.identity)
        assert newest is not None and there is not None  # noqa: PT018
        assert newest.first_place == there.first_place, where
        points += 1
    assert points >= 20


def test_collect_at_every_point(site: Site) -> None:
    kept = kept_of(site)
    folded = site.twin()
    both_folds(folded)
    folded.store.now += 49 * HOUR * NS
    wanted = folded.twin()
    assert wanted.collect().deleted > 20
    points = 0
    for where, twin in stopped(folded, collect):
        assert twin.check(lambda c: c == kept, every=7) == [], where
        assert scrub(twin.store, twin.builder.identity).problems == [], where
        twin.collect()
        assert twin.store.objects == wanted.store.objects, where
        points += 1
    assert points >= 40


def test_control_what_is_deleted_before_its_boundary_stands_is_missed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mechanism broken: collection takes the fold's intent for a boundary that stands."""
    twin = site.twin()
    identity = twin.builder.identity
    twin.store = StoppingStore(twin.store, 4, "before")  # type: ignore[assignment]
    with pytest.raises(StoppingStore.Stopped):
        twin.fold()
    twin.store = twin.store._inner  # type: ignore[attr-defined]
    assert list_boundaries(twin.store, identity) == []
    other = site.twin()
    other.fold()
    plan = Collector(other.store, identity, CollectOptions(grace_seconds=0)).plan()
    for name in plan.names:
        twin.store.delete(name)
    with pytest.raises((HoldfastError, AssertionError)):
        assert twin.check() == []


def test_nothing_goes_before_the_grace_is_over(site: Site) -> None:
    twin = site.twin()
    both_folds(twin)
    before = dict(twin.store.objects)
    for hours in (0, 12, 11.9):
        twin.store.now += int(hours * HOUR) * NS
        assert twin.collect().deleted == 0
    assert twin.store.objects == before
    twin.store.now += HOUR * NS
    # The first boundary has stood; the second made the window shorter, and stands for a day too.
    assert twin.collect().deleted > 0
