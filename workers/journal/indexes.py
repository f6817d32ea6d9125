"""Which index objects a stream has, and the next one that fits where a reader stands.

They save requests and decide nothing: one that is missing, damaged or of another history is passed
over, and the segments that it stands for are read instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.limits import KIB
from host_agent.wire.names import Identity, index_name, index_number, index_prefix
from workers.journal import indexfile
from workers.journal.blocks import FoundIndex
from workers.journal.chain import DAMAGE, readers
from workers.journal.errors import KeyObjectLost
from workers.journal.indexfile import SealedIndex, front_length, parse_front
from workers.journal.opening import KeyRing
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: First read of an object: its summary, and of a small object all.
FRONT_BYTES = 96 * KIB

#: Summaries that are read at once: a store's latency is what opening a long journal waits for.
_READERS = 16


@dataclass(frozen=True)
class IndexChoice:
    """Which index objects may be used: those that begin at the place `first_place` or later and
    end before the place `until`, without those of `excluded` by (level, number)."""

    first_place: int = 1
    until: int | None = None
    excluded: frozenset[tuple[int, int]] = frozenset()


class IndexSource:
    """The index objects of a stream that a listing shows. Not for several threads. A context
    manager."""

    def __init__(
        self, store: ObjectStore, identity: Identity, keys: KeyRing, choice: IndexChoice
    ) -> None:
        self._store = store
        self._identity = identity
        self._keys = keys
        self._known: list[tuple[int, dict[int, int]]] = []
        for level in range(indexfile.LEVELS, 0, -1):
            span = indexfile.SPAN**level
            fitting = {}
            for entry in store.list(index_prefix(identity, level)):
                number = index_number(entry.name)
                if number is None or (number - 1) * span + 1 < choice.first_place:
                    continue
                if choice.until is None or number * span < choice.until:
                    fitting[number] = entry.size
            self._known.append((level, fitting))
        for level, numbers in self._known:
            for excluded, number in choice.excluded:
                if excluded == level:
                    numbers.pop(number, None)
        self._pool = ThreadPoolExecutor(readers(store, _READERS), "holdfast-index")
        self._coming: dict[tuple[int, int], Future[tuple[SealedIndex, bytes]]] = {}
        for level, number in self._cover():
            size = dict(self._known)[level][number]
            self._coming[level, number] = self._pool.submit(self._fetch, level, number, size)

    def __enter__(self) -> IndexSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _cover(self) -> Iterator[tuple[int, int]]:
        """The objects that will be taken if none of them is damaged."""
        done = 0
        tops: list[tuple[int, int, int, int]] = []
        for level, numbers in self._known:
            span = indexfile.SPAN**level
            tops += [((n - 1) * span, -level, n * span, n) for n in numbers]
        for first, negative, end, number in sorted(tops):
            if first >= done:
                done = end
                yield -negative, number

    def take(self, place: int) -> FoundIndex | None:
        """The largest object that begins at `place`; None where segments must be read."""
        for level, numbers in self._known:
            number, within = divmod(place - 1, indexfile.SPAN**level)
            if within == 0 and number + 1 in numbers:
                try:
                    return self._load(level, number + 1, numbers[number + 1])
                except (ObjectMissing, KeyObjectLost, *DAMAGE):
                    self.discard(level, number + 1)
        return None

    def discard(self, level: int, number: int) -> None:
        """Do without that object."""
        dict(self._known)[level].pop(number, None)

    def _load(self, level: int, number: int, size: int) -> FoundIndex:
        coming = self._coming.pop((level, number), None)
        sealed, front = coming.result() if coming else self._fetch(level, number, size)
        head = sealed.head
        if (head.level, head.number, head.identity_hash) != (level, number, self._identity.hash):
            raise WireError("The index object is that of other places.")
        if sealed.length != size:
            raise WireError("The index object is cut off.")
        for generation, data in head.keys.items():
            self._keys.offer(generation, data.encode())
        index = sealed.open(self._identity, self._keys.data_key(head.newest.generation))
        return FoundIndex(index, front, self._store, self._identity)

    def _fetch(self, level: int, number: int, size: int) -> tuple[SealedIndex, bytes]:
        name = index_name(self._identity, level, number)
        front = self._store.get_range(name, 0, min(size, FRONT_BYTES))
        sealed = parse_front(front)
        if sealed is None:
            front = self._store.get_range(name, 0, min(size, front_length(front)))
            sealed = parse_front(front)
        if sealed is None:
            raise WireError("The index object is cut off.")
        return sealed, front

    def next_start(self, place: int) -> int | None:
        """The last place before the next object that begins behind `place`."""
        starts = [
            (number - 1) * indexfile.SPAN**level
            for level, numbers in self._known
            for number in numbers
        ]
        return min((end for end in starts if end >= place), default=None)


class IndexUnfit(Exception):
    """An index object and the chain contradict each other: the chain is read, and decides.

    `choice` tells what may be used instead.
    """

    def __init__(self, choice: IndexChoice, why: HoldfastError | None = None) -> None:
        super().__init__(choice, why)
        self.choice = choice
