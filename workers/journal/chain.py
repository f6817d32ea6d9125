"""Walking a chain: tails read ahead in parallel, checked one by one, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from host_agent.wire.errors import (
    BadKeyFile,
    BadName,
    ChainBroken,
    HoldfastError,
    UnsealFailed,
    WireError,
    WrongKey,
)
from host_agent.wire.names import Identity, chain_name, chain_prefix
from host_agent.wire.segment import (
    TRAILER_BYTES,
    FrameRef,
    SegmentInfo,
    check_follows,
    parse_tail,
    parse_trailer,
)
from workers.journal.errors import JournalDamaged, SegmentLost
from workers.storage.errors import ObjectMissing, ObjectTooLarge, ObjectTooShort
from workers.storage.local import LocalStore
from workers.storage.port import ObjectStore
from workers.storage.retry import RetryingStore

#: First read of a segment's end: holds the tail of a full segment of 4 KiB writes (about 60 KiB).
TAIL_BYTES_GUESS = 128 * 1024

#: Tails that are read ahead: enough to hide a store's latency, few enough to hold in memory (256
#: MiB at worst).
READ_AHEAD = 12

#: What can be wrong with stored bytes, as opposed to the store being away.
DAMAGE = (
    WireError,
    ChainBroken,
    UnsealFailed,
    WrongKey,
    BadKeyFile,
    BadName,
    ObjectTooShort,
    ObjectTooLarge,
)


def readers(store: ObjectStore, most: int) -> int:
    """Threads that read ahead: a folder answers at once, and more would only hold each other up."""
    bare = store.inner if isinstance(store, RetryingStore) else store
    return 1 if isinstance(bare, LocalStore) else most


@dataclass(frozen=True)
class Loaded:
    """A segment without its payloads."""

    info: SegmentInfo
    frames: list[FrameRef]


def read_tail(
    store: ObjectStore, identity: Identity, place: int
) -> tuple[SegmentInfo, list[FrameRef]]:
    """The segment at `place` without its payloads; ObjectMissing, WireError."""
    name = chain_name(identity, place)
    tail = store.get_tail(name, TAIL_BYTES_GUESS)
    info = parse_trailer(tail)
    if len(tail) < min(info.tail_length, TAIL_BYTES_GUESS):
        raise WireError("The segment is cut off.")
    if len(tail) < info.tail_length:
        trailer = tail[-TRAILER_BYTES:]
        tail = store.get_range(name, info.object_length - info.tail_length, info.tail_length)
        if tail[-TRAILER_BYTES:] != trailer:
            raise WireError("The segment has another length than its trailer says.")
    return parse_tail(tail)


def damaged(identity: Identity, place: int, error: HoldfastError) -> JournalDamaged:
    """The named error for what `error` found at a place."""
    if isinstance(error, JournalDamaged):
        return error
    return JournalDamaged(
        place, f"The segment at place {place} of {identity} cannot be used: {error.message}"
    )


def is_taken(store: ObjectStore, identity: Identity, place: int) -> bool:
    """Whether a segment has this place."""
    try:
        store.size(chain_name(identity, place))
    except ObjectMissing:
        return False
    return True


def climb(store: ObjectStore, identity: Identity, known: int) -> int:
    """By doubling and halving from a place that is taken, or 0: one with none right after it."""
    step = 1
    while is_taken(store, identity, known + step):
        known, step = known + step, step * 2
    while step > 1:
        step //= 2
        if is_taken(store, identity, known + step):
            known += step
    return known


class ChainWalk:
    """The segments of a stream, oldest first, as far as the chain is whole.

    The walk ends at the chain's end, after the place `stop`, or at the first damage, which `damage`
    then holds; a store that is away raises.
    """

    def __init__(
        self,
        store: ObjectStore,
        identity: Identity,
        start: SegmentInfo | None = None,
        stop: int | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self.newest = start
        self._stop = stop or 1 << 63
        self.damage: JournalDamaged | None = None

    def __iter__(self) -> Iterator[Loaded]:
        first = self.newest.place + 1 if self.newest else 1
        ahead: deque[Future[Loaded]] = deque()
        count = readers(self._store, READ_AHEAD)
        with ThreadPoolExecutor(count, "holdfast-chain") as pool:
            try:
                place = asked = first
                while place <= self._stop:
                    # Grows from one: most walks of a short chain must not ask for what is not
                    # there.
                    further = min(READ_AHEAD, max(1, place - first))
                    while asked < min(place + further, self._stop + 1):
                        ahead.append(pool.submit(self._load, asked))
                        asked += 1
                    loaded = self._next(place, ahead.popleft())
                    if loaded is None:
                        return
                    yield loaded
                    place += 1
            finally:
                for future in ahead:
                    future.cancel()

    def _next(self, place: int, future: Future[Loaded]) -> Loaded | None:
        """The segment at `place`, or None where the walk ends."""
        try:
            loaded = self._wait(place, future)
            if loaded is None:
                return None
            if loaded.info.place != place or loaded.info.identity_hash != self._identity.hash:
                raise WireError("it belongs to another place or to another stream.")
            check_follows(self.newest, loaded.info)
        except (JournalDamaged, *DAMAGE) as error:
            self.damage = damaged(self._identity, place, error)
            return None
        self.newest = loaded.info
        return loaded

    def _wait(self, place: int, future: Future[Loaded]) -> Loaded | None:
        with suppress(ObjectMissing):
            return future.result()
        prefix = chain_prefix(self._identity)
        later = next(
            iter(self._store.list(prefix, chain_name(self._identity, place), limit=1)), None
        )
        if later is None:
            return None
        try:
            # A writer may have created this place and the next since we asked.
            return self._load(place)
        except ObjectMissing:
            raise SegmentLost(
                place,
                f"The segment at place {place} of {self._identity} is missing,"
                f" and {later.name} is there.",
            ) from None

    def _load(self, place: int) -> Loaded:
        info, frames = read_tail(self._store, self._identity, place)
        if info.place != place or info.identity_hash != self._identity.hash:
            raise WireError("it belongs to another place or to another stream.")
        return Loaded(info, frames)
