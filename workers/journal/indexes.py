"""Which index objects a stream has, and the next one that fits where a reader stands.

They save requests and decide nothing: one that is missing, damaged or of another history is passed
over, and the segments that it stands for are read instead.
"""

from __future__ import annotations

from host_agent.wire.names import Identity, index_name, index_number, index_prefix
from workers.journal import indexfile
from workers.journal.chain import DAMAGE
from workers.journal.errors import KeyObjectLost
from workers.journal.indexfile import IndexBody, IndexHead, parse_index
from workers.journal.opening import KeyRing
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore


class IndexSource:
    """The index objects of a stream that a listing shows. Not for several threads."""

    def __init__(
        self, store: ObjectStore, identity: Identity, keys: KeyRing, until: int | None = None
    ) -> None:
        """With `until`, only objects that end before that place are used."""
        self._store = store
        self._identity = identity
        self._keys = keys
        self._until = until
        self._known: list[tuple[int, set[int]]] = []
        for level in range(indexfile.LEVELS, 0, -1):
            listed = store.list(index_prefix(identity, level))
            numbers = {index_number(entry.name) for entry in listed}
            span = indexfile.SPAN**level
            fitting = {n for n in numbers if n and (until is None or n * span < until)}
            self._known.append((level, fitting))

    def take(self, place: int) -> tuple[IndexHead, IndexBody] | None:
        """The largest object that begins at `place`; None where segments must be read."""
        for level, numbers in self._known:
            number, within = divmod(place - 1, indexfile.SPAN**level)
            if within == 0 and number + 1 in numbers:
                try:
                    return self._load(level, number + 1)
                except (ObjectMissing, KeyObjectLost, *DAMAGE):
                    numbers.discard(number + 1)
        return None

    def _load(self, level: int, number: int) -> tuple[IndexHead, IndexBody]:
        sealed = parse_index(self._store.get(index_name(self._identity, level, number)))
        head = sealed.head
        if (head.level, head.number, head.identity_hash) != (level, number, self._identity.hash):
            raise KeyObjectLost(0, "The index object is that of other places.")
        for generation, data in head.keys.items():
            self._keys.offer(generation, data.encode())
        return head, sealed.open(self._identity, self._keys.data_key(head.newest.generation))

    def segments_until(self, place: int) -> int | None:
        """The place up to which segments are read from `place` on; None: to the chain's end."""
        starts = [
            (number - 1) * indexfile.SPAN**level
            for level, numbers in self._known
            for number in numbers
        ]
        ends = [end for end in starts if end >= place]
        if self._until is not None:
            ends.append(self._until)
        return min(ends, default=None)
