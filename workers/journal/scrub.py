"""Reads every stored object of a stream back, without any key: hashes, links, and key objects.

What only a data key can tell (seals, the data's own checksums) is `verify --deep`. A damaged object
does not end a scrub: each is named, and what follows it is read as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from host_agent.wire.errors import ChainBroken, HoldfastError, WireError
from host_agent.wire.keys import check_key_object
from host_agent.wire.names import (
    Identity,
    chain_name,
    chain_prefix,
    index_number,
    index_prefix,
    key_name,
    layers_name,
    part_name,
    place_of,
)
from host_agent.wire.segment import SegmentInfo, check_follows, parse_tail, verify_segment
from workers.journal import indexfile
from workers.journal.boundary import list_boundaries, newest_boundary, read_boundary
from workers.journal.chain import DAMAGE, damaged
from workers.journal.errors import (
    BoundaryDamaged,
    IndexDamaged,
    JournalCut,
    KeyObjectLost,
    LayerDamaged,
    SegmentLost,
)
from workers.journal.indexfile import IndexHead, parse_index
from workers.journal.layerfile import ListClear, object_hex, parse_list, parse_object
from workers.journal.statements import read_statement
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: Whole segments under way: enough to keep a store busy, at most 100 MiB.
_AHEAD = 4

_NO_GENERATION = bytes(16)


@dataclass
class Scrubbed:
    """What a scrub found. `layers`: objects of layers, lists and boundaries. Bytes are those of the
    objects read."""

    segments: int = 0
    frames: int = 0
    keys: int = 0
    indexes: int = 0
    layers: int = 0
    bytes: int = 0
    problems: list[HoldfastError] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "segments": self.segments,
            "frames": self.frames,
            "keys": self.keys,
            "indexes": self.indexes,
            "layers": self.layers,
            "bytes": self.bytes,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def scrub(
    store: ObjectStore, identity: Identity, advance: Callable[[int], None] | None = None
) -> Scrubbed:
    """Check all objects of a stream; `advance` hears the bytes read.

    Damage is in the result; a store that is away raises StoreError.
    """
    # Before the chain: what is stated now must be there when the chain is read.
    statement = read_statement(store, identity)
    run = _Scrub(store, identity, advance or (lambda _: None))
    run.layers()
    run.segments()
    run.indexes()
    if statement is not None and statement.seq:
        run.check_stated(statement.generation, statement.seq)
    return run.result


def _places(store: ObjectStore, identity: Identity, result: Scrubbed) -> Iterator[int]:
    """The places that a listing shows. What does not belong there is a problem."""
    for listed in store.list(chain_prefix(identity)):
        place = place_of(listed.name)
        if place is None:
            result.problems.append(
                ChainBroken(
                    f"{listed.name} lies in the chain of {identity} and is no segment.",
                    hint="Nothing but ingest may write there; remove what does not belong.",
                )
            )
        else:
            yield place


class _Scrub:
    """One run over one stream."""

    def __init__(
        self, store: ObjectStore, identity: Identity, advance: Callable[[int], None]
    ) -> None:
        self._store = store
        self._identity = identity
        self._advance = advance
        self.result = Scrubbed()
        self._before: SegmentInfo | None = None
        self._expected = 1
        self._last: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    def layers(self) -> None:
        """Boundaries, and the list and all objects of the newest: what stands for the beginning."""
        newest = None
        try:
            newest = newest_boundary(self._store, self._identity)
            for number in list_boundaries(self._store, self._identity):
                self.result.layers += 1
                read_boundary(self._store, self._identity, number)
        except BoundaryDamaged as error:
            self.result.problems.append(error)
        if newest is None:
            return
        self._before, self._expected = newest.newest, newest.first_place
        self._last[newest.newest.generation] = newest.newest.last_seq
        name = layers_name(self._identity, newest.layers)
        try:
            data = self._read_layer(name)
            _, _, clear = parse_list(data, self._identity, newest.layers)
            if clear.trailer != newest.trailer:
                raise WireError("it ends elsewhere than its boundary.")
        except (ObjectMissing, *DAMAGE) as error:
            self.result.problems.append(LayerDamaged(name, error.message))
            return
        for generation in clear.keys:
            self._check_key_object(bytes.fromhex(generation), newest.first_place - 1)
        self._layer_objects(clear)

    def _layer_objects(self, clear: ListClear) -> None:
        for short, size in clear.objects():
            name = part_name(self._identity, short)
            try:
                data = self._read_layer(name)
                head, _ = parse_object(data)
                if (len(data), head.identity_hash) != (size, self._identity.hash):
                    raise WireError("it has another length, or is of another stream.")
                if object_hex(data) != short.rpartition("/")[2]:
                    raise WireError("it is another one than its name says.")
            except (ObjectMissing, *DAMAGE) as error:
                self.result.problems.append(LayerDamaged(name, error.message))

    def _read_layer(self, name: str) -> bytes:
        data = self._store.get(name)
        self._advance(len(data))
        self.result.layers += 1
        self.result.bytes += len(data)
        return data

    def segments(self) -> None:
        """All segments in order, read ahead."""
        with ThreadPoolExecutor(_AHEAD, "holdfast-scrub") as pool:
            ahead: deque[tuple[int, Future[bytes]]] = deque()
            try:
                first = self._expected
                for place in _places(self._store, self._identity, self.result):
                    if place < first:
                        continue  # given up, and not collected yet
                    name = chain_name(self._identity, place)
                    ahead.append((place, pool.submit(self._store.get, name)))
                    if len(ahead) >= _AHEAD:
                        self._take(*ahead.popleft())
                while ahead:
                    self._take(*ahead.popleft())
            finally:
                for _, future in ahead:
                    future.cancel()

    def indexes(self) -> None:
        """All index objects: their hashes, and that they were made of this chain."""
        for level in range(1, indexfile.LEVELS + 1):
            for listed in self._store.list(index_prefix(self._identity, level)):
                try:
                    data = self._store.get(listed.name)
                    self._advance(len(data))
                    self.result.indexes += 1
                    self.result.bytes += len(data)
                    self._check_index(listed.name, level, parse_index(data).head)
                except ObjectMissing:
                    continue
                except DAMAGE as error:
                    self.result.problems.append(IndexDamaged(listed.name, error.message))

    def _check_index(self, name: str, level: int, head: IndexHead) -> None:
        stated = (head.level, head.number, head.identity_hash)
        if stated != (level, index_number(name), self._identity.hash):
            raise WireError("It is that of other places, or of another stream.")
        held = self._hashes.get(head.last_place)
        if held is not None and held != head.newest.hash:
            raise WireError("It was made of another history of this stream.")

    def _take(self, place: int, read: Future[bytes]) -> None:
        self._lost_before(place)
        try:
            data = read.result()
            self._advance(len(data))
            self.result.segments += 1
            self.result.bytes += len(data)
            info = self._check(place, data)
        except (ObjectMissing, *DAMAGE) as error:
            self.result.problems.append(damaged(self._identity, place, error))
            self._before = None
            return
        self._check_key(info)
        self._before = info
        if place % indexfile.SPAN == 0:
            self._hashes[place] = info.hash
        if info.last_seq:
            self._last[info.generation] = info.last_seq

    def _lost_before(self, place: int) -> None:
        """Places that the listing passed over: it discovers, a read decides."""
        while self._expected < place:
            missing = self._expected
            self._expected += 1
            read: Future[bytes] = Future()
            try:
                read.set_result(self._store.get(chain_name(self._identity, missing)))
            except ObjectMissing:
                self.result.problems.append(
                    SegmentLost(
                        missing,
                        f"The segment at place {missing} of {self._identity} is missing,"
                        f" and a later one is there.",
                    )
                )
                self._before = None
                continue
            self._take(missing, read)
        self._expected = place + 1

    def _check(self, place: int, data: bytes) -> SegmentInfo:
        info = verify_segment(data)
        if info.place != place or info.identity_hash != self._identity.hash:
            raise ChainBroken("It belongs to another place or to another stream.")
        _, frames = parse_tail(data)
        self.result.frames += len(frames)
        if self._before is not None or place == 1:
            check_follows(self._before, info)
        return info

    def _check_key(self, info: SegmentInfo) -> None:
        """Each generation's key object is there, and of this stream."""
        if info.generation != _NO_GENERATION and info.generation not in self._last:
            self._check_key_object(info.generation, info.place)

    def _check_key_object(self, generation: bytes, place: int) -> None:
        name = key_name(self._identity, generation)
        try:
            data = self._store.get(name)
            check_key_object(data, self._identity, generation)
        except (ObjectMissing, *DAMAGE) as error:
            self.result.problems.append(
                KeyObjectLost(
                    place,
                    f"The data key {name} is missing or damaged: {error.message}",
                    hint="Bring that object back from a copy of the store.",
                )
            )
            return
        self.result.keys += 1

    def check_stated(self, generation: str, seq: int) -> None:
        """The chain reaches what was stated to be stored."""
        if any(name.hex() == generation and last >= seq for name, last in self._last.items()):
            return
        self.result.problems.append(
            JournalCut(
                self._expected,
                f"The journal of {self._identity} ends before place {self._expected}, but sequence"
                f" {seq} of generation {generation} was stated to be stored.",
            )
        )
