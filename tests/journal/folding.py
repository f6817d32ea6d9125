"""Journals that last for hours, folded and collected, and compared with the model at every moment.

Shared by the tests of folding, of collection and of their crash points.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from host_agent.wire.pieces import Content
from tests.model.builder import JournalBuilder
from tests.model.model import MARK
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from tests.restore.replay import Moment, moments
from workers.journal.boundary import newest_boundary
from workers.journal.collect import CollectOptions, Collector, Plan
from workers.journal.errors import InsideRequest, InsideSync, MomentGone, SelectorError
from workers.journal.fold import Folded, Folder, FoldTools
from workers.journal.points import resolve
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.retention import Policy
from workers.restore.fetch import fetch_all
from workers.storage.port import Created, ObjectStore

NS = 1_000_000_000
HOUR = 3600
SHAPE = Shape({"root": 64, "data": 40}, operations=150, segment_chance=0.35, frame_chance=0.5,
              generation_chance=0.02)  # fmt: skip
ONE_HOUR = Policy(window_seconds=HOUR)


class ClockedStore(MemoryStore):
    """A store with a clock of its own: `now` moves by hand, nanoseconds."""

    def __init__(self, objects: dict[str, bytes] | None = None, now: int = 0) -> None:
        super().__init__(objects)
        self.now = now

    def answered_at(self) -> int | None:
        """Every answer is of now."""
        return self.now


class LongBuilder(JournalBuilder):
    """Between two segments some minutes pass."""

    def segment(self) -> None:
        """Commit, then wait."""
        super().segment()
        self.now += self.rng.randrange(30, 300) * NS


@dataclass
class Site:
    """A stream's journal in memory, with what wrote it."""

    builder: LongBuilder
    store: ClockedStore
    known: list[Moment] = field(default_factory=list)

    @classmethod
    def make(cls, seed: int, shape: Shape = SHAPE) -> Site:
        """A random workload of some hours."""
        rng = random.Random(seed)
        store = ClockedStore()
        builder = LongBuilder(store, rng=rng)
        Workload(builder, shape, rng).run()
        store.now = builder.now
        site = cls(builder, store)
        site.known = list(moments(builder))
        return site

    def twin(self) -> Site:
        """The same, over a copy of the store."""
        return Site(self.builder, ClockedStore(self.store.objects, self.store.now), self.known)

    def folder(self, policy: Policy = ONE_HOUR, store: ObjectStore | None = None) -> Folder:
        """A fold, not begun."""
        rng = random.Random(1)
        stream = (self.builder.identity, self.builder.tenant_key)
        return Folder(store or self.store, stream, policy, FoldTools(fetch_all, rng.randbytes))

    def fold(self, policy: Policy = ONE_HOUR) -> Folded:
        """Fold all that is due."""
        return self.folder(policy).run()

    def collect(self, options: CollectOptions | None = None) -> Plan:
        """Collect after the grace."""
        collector = Collector(self.store, self.builder.identity, options or CollectOptions())
        plan = collector.plan()
        for _ in collector.steps(plan):
            pass
        return plan

    def opened(self, options: ReadOptions | None = None) -> Journal:
        """The journal as it is now."""
        return open_journal(self.store, self.builder.identity, self.builder.tenant_key, options)

    def first_position(self) -> tuple[int, int]:
        """(generation, sequence) from which on everything must be there."""
        boundary = newest_boundary(self.store, self.builder.identity)
        if boundary is None:
            return 0, 0
        newest = boundary.newest
        return self.builder.generations.index(newest.generation), newest.last_seq

    def check(self, kept: Callable[[str], bool] = lambda _: False, every: int = 1) -> list[str]:
        """What is wrong: moments that are not the model's, gone ones that are not named so.

        `kept` says of a checkpoint's id whether it must be there although it is old.
        """
        first = self.first_position()
        wrong: list[str] = []
        with self.opened() as journal:
            assert journal.damage is None, journal.damage
            images = Images(journal)
            for number, moment in enumerate(self.known):
                at = (moment.recorded.generation, moment.recorded.seq)
                is_old = at < first
                if number % every and not is_old:
                    continue
                wrong += self._compare(images, moment, is_old=is_old)
                if is_old and moment.may_be_chosen and moment.recorded.event.op == MARK:
                    body = moment.recorded.event.body or {}
                    wrong += self._compare_mark(images, moment, kept(body["checkpoint"]))
        return wrong

    def _compare(self, images: Images, moment: Moment, *, is_old: bool) -> Iterator[str]:
        try:
            found = images.at(moment.selector)
        except MomentGone:
            if not is_old:
                yield f"{moment.selector} is gone"
        except (InsideSync, InsideRequest):
            if moment.may_be_chosen:
                yield f"{moment.selector} cannot be chosen"
        else:
            if not moment.may_be_chosen or found != moment.images:
                yield f"{moment.selector} differs"

    def _compare_mark(self, images: Images, moment: Moment, must: bool) -> Iterator[str]:
        body = moment.recorded.event.body or {}
        try:
            found = images.at(f"checkpoint:{body['checkpoint']}")
        except SelectorError:
            if must:
                yield f"checkpoint {body['checkpoint']} is gone"
        else:
            if found != moment.images:
                yield f"checkpoint {body['checkpoint']} differs"


class StoppingStore:
    """Another store up to a change: before it, after it, or so that its outcome is not known, its
    caller stops for good. Reads go on until then."""

    class Stopped(BaseException):
        """The caller is gone."""

    def __init__(self, inner: ClockedStore, at: int, how: str) -> None:
        self._inner = inner
        self._left = at
        self._how = how
        self.changes = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def put_if_absent(self, name: str, data: Content) -> Created:
        """Create, unless it is time to stop."""
        return self._change(lambda: self._inner.put_if_absent(name, data))  # type: ignore[return-value]

    def delete(self, name: str) -> None:
        """Remove, unless it is time to stop."""
        self._change(lambda: self._inner.delete(name))

    def _change(self, change: Callable[[], object]) -> object:
        self.changes += 1
        if self.changes == self._left:
            if self._how == "after":
                change()
            raise self.Stopped
        return change()


def latest(site: Site) -> dict[str, bytes]:
    """The newest write's images."""
    with site.opened() as journal:
        return Images(journal).of(resolve(journal, "latest-write"))
