"""Deletes what a boundary gave up, after it has stood for the grace. Needs no key.

A listing finds what might go; that it lies behind the boundary decides, by its name alone. Before
anything goes, all that stands for it is looked up by name. Every deletion may be the last: what is
left is found by the next run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.names import (
    Identity,
    boundary_name,
    chain_name,
    chain_prefix,
    hashes_place,
    hashes_prefix,
    index_number,
    index_prefix,
    layers_name,
    layers_prefix,
    number_of,
    part_name,
    parts_prefix,
    place_of,
)
from host_agent.wire.segment import TRAILER_BYTES, parse_trailer
from workers.journal import indexfile, retention
from workers.journal.boundary import Boundary, list_boundaries, newest_boundary, read_boundary
from workers.journal.layerfile import ListClear, parse_list
from workers.journal.retention import NANOSECONDS, Standing
from workers.storage.errors import ObjectMissing
from workers.storage.failpoints import failpoint
from workers.storage.port import ObjectStore

#: How long a boundary stands before anything behind it goes: readers and stalled writers see it.
GRACE_SECONDS = 24 * 3600

#: A boundary of the future by more than this means that the store's clock ran back.
_SKEW_SECONDS_MAX = 3600


class CollectRefused(HoldfastError):
    """Nothing is deleted: something is not as it should be before data goes for good."""

    code = "collect_refused"


@dataclass(frozen=True)
class CollectOptions:
    """`limit`: objects deleted at most (None: what is usual); `force`: a suspicious share, too."""

    grace_seconds: float = GRACE_SECONDS
    dry_run: bool = False
    limit: int | None = None
    force: bool = False


@dataclass
class Plan:
    """What a run deletes, in that order. `left`: what later runs will; `bytes` of what goes.

    `first_place`: history before it goes; 0: no boundary has stood for long enough.
    """

    names: list[str] = field(default_factory=list)
    bytes: int = 0
    objects: int = 0
    left: int = 0
    first_place: int = 0
    boundary: int = 0
    deleted: int = 0

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "boundary": self.boundary,
            "first_place": self.first_place,
            "objects": self.objects,
            "planned": len(self.names),
            "planned_bytes": self.bytes,
            "deleted": self.deleted,
            "left": self.left,
            "problems": [],
        }


class Collector:
    """One run over one stream: `plan`, then `steps`."""

    def __init__(self, store: ObjectStore, identity: Identity, options: CollectOptions) -> None:
        self._store = store
        self._identity = identity
        self._options = options
        self._found: list[tuple[str, int]] = []
        self._objects = 0

    def plan(self) -> Plan:
        """What goes; deletes nothing. CollectRefused, BoundaryDamaged, StoreError."""
        newest = newest_boundary(self._store, self._identity)
        if newest is None:
            return Plan()
        known = self._boundaries(newest)
        standing = retention.standing_boundary(
            [Standing(b.number, b.first_place, b.set_at, b.window_seconds) for b in known],
            self._now(newest),
            self._options.grace_seconds,
        )
        if standing is None:
            return Plan()
        boundary = next(b for b in known if b.number == standing.number)
        later = [b for b in known if b.number >= boundary.number]
        lists = [self._check_list(b) for b in later]
        self._check_chain(boundary)
        self._gather(boundary, lists)
        return self._bounded(boundary)

    def _now(self, newest: Boundary) -> int:
        """The store's clock, as its last answer had it."""
        now = self._store.answered_at()
        if now is None:
            raise CollectRefused(
                f"{self._store.label} does not tell its time: no grace can be counted.",
                hint="Use a store that answers with its clock.",
            )
        if newest.set_at > now + _SKEW_SECONDS_MAX * NANOSECONDS:
            raise CollectRefused(
                f"The clock of {self._store.label} is before that of boundary {newest.number}.",
                hint="It ran back. Nothing is deleted until it is past that time again.",
            )
        return now

    def _boundaries(self, newest: Boundary) -> list[Boundary]:
        """All that are there, ascending, each giving up more than the one before."""
        numbers = [n for n in list_boundaries(self._store, self._identity) if n < newest.number]
        found = (read_boundary(self._store, self._identity, number) for number in numbers)
        known = [*(boundary for boundary in found if boundary is not None), newest]
        places = [boundary.first_place for boundary in known]
        if places != sorted(places):
            raise CollectRefused(
                f"A boundary of {self._identity} gives up less than the one before it.",
                hint="Boundaries were copied or exchanged. Bring the right ones back.",
            )
        return known

    def _check_list(self, boundary: Boundary) -> ListClear:
        """The layer list of a boundary, and that all its objects are there, by their names."""
        name = layers_name(self._identity, boundary.layers)
        try:
            number = boundary.layers
            _, _, clear = parse_list(self._store.get(name), self._identity, number)
            if clear.trailer != boundary.trailer:
                raise WireError("it ends elsewhere than its boundary.")
            for short, size in clear.objects():
                if self._store.size(part_name(self._identity, short)) != size:
                    raise WireError(f"{short} has another length.")
        except (ObjectMissing, WireError) as error:
            raise CollectRefused(
                f"{name} cannot stand for what would be deleted: {error.message}",
                hint="Bring its objects back, or fold again; `journal scrub` says what is wrong.",
            ) from error
        return clear

    def _check_chain(self, boundary: Boundary) -> None:
        """The chain goes on right behind the boundary."""
        name = chain_name(self._identity, boundary.first_place)
        try:
            follows = parse_trailer(self._store.get_tail(name, TRAILER_BYTES))
        except (ObjectMissing, WireError) as error:
            raise CollectRefused(
                f"The chain does not go on behind the boundary: {error.message}",
                hint="`journal scrub` says what is wrong.",
            ) from error
        if follows.previous != boundary.newest.hash or follows.place != boundary.first_place:
            raise CollectRefused(
                f"{name} does not follow what the layers stand for.",
                hint="`journal scrub` says what is wrong.",
            )

    def _gather(self, boundary: Boundary, lists: list[ListClear]) -> None:
        """Everything that lies behind the boundary; what was given up first goes first."""
        first, identity = boundary.first_place, self._identity
        for level in range(1, indexfile.LEVELS + 1):
            span = indexfile.SPAN**level
            for name, size in self._listed(index_prefix(identity, level)):
                number = index_number(name)
                self._take(name, size, number is not None and number * span < first)
        for folder in self._store.folders(hashes_prefix(identity)):
            for name, size in self._listed(folder):
                found = hashes_place(name)
                self._take(name, size, found is not None and found[0] < first - 1)
        for name, size in self._listed(chain_prefix(identity)):
            place = place_of(name)
            self._take(name, size, place is not None and place < first)
        self._gather_layers(boundary, lists)
        for number in list_boundaries(self._store, identity):
            self._take(boundary_name(identity, number), 0, number < boundary.number)

    def _gather_layers(self, boundary: Boundary, lists: list[ListClear]) -> None:
        """Objects of older layers. A number from the newest list's on may be in the making."""
        identity = self._identity
        needed = {part_name(identity, short) for clear in lists for short, _ in clear.objects()}
        for folder in self._store.folders(parts_prefix(identity)):
            number = number_of(folder)
            over = number is not None and number <= boundary.layers
            for name, size in self._listed(folder):
                self._take(name, size, over and name not in needed)
        for name, size in self._listed(layers_prefix(identity)):
            number = number_of(name)
            self._take(name, size, number is not None and number < boundary.layers)

    def _listed(self, folder: str) -> Iterator[tuple[str, int]]:
        for listed in self._store.list(folder):
            yield listed.name, listed.size

    def _take(self, name: str, size: int, goes: bool) -> None:
        self._objects += 1
        if goes:
            self._found.append((name, size))

    def _bounded(self, boundary: Boundary) -> Plan:
        options, count = self._options, len(self._found)
        limit = retention.deletes_max(self._objects) if options.limit is None else options.limit
        chosen = self._found[:limit]
        if retention.is_suspicious(len(chosen), self._objects) and not options.force:
            raise CollectRefused(
                f"{len(chosen)} of {self._objects} objects of {self._identity} would be deleted"
                " in one run.",
                hint="Look at it with --dry-run; say --force if that is right.",
            )
        size = sum(size for _, size in chosen)
        names = [name for name, _ in chosen]
        left = count - len(chosen)
        return Plan(names, size, self._objects, left, boundary.first_place, boundary.number)

    def steps(self, plan: Plan) -> Iterator[str]:
        """Delete what was planned, a step for each object; yields its name."""
        if self._options.dry_run:
            return
        for name in plan.names:
            failpoint("object_after_planned_before_delete")
            self._store.delete(name)
            plan.deleted += 1
            yield name
