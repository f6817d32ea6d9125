"""The end of a stream's chain: found, claimed, continued.

A segment's name is its place, created if absent. So whoever creates place k owns it, and whoever
finds it taken reads what is there. Before its first frame a writer creates an *epoch segment* with
a higher epoch than any before: one request that claims the stream and fences every older writer,
because the place where an older one would continue is taken from then on.

Nothing here retries (the store does) or waits; calls block and are made by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from host_agent.wire.errors import ChainBroken, HoldfastError, WireError
from host_agent.wire.names import Identity, chain_name, chain_prefix, key_name, place_of
from host_agent.wire.pieces import Content
from host_agent.wire.segment import (
    KIND_DATA,
    KIND_EPOCH,
    TRAILER_BYTES,
    SegmentInfo,
    build_segment,
    check_follows,
    gather_segment,
    parse_trailer,
    verify_segment,
)
from workers.ingest.batch import Batch
from workers.ingest.decide import NO_GENERATION, StoredKey, compare_key
from workers.journal.boundary import Boundary, newest_boundary
from workers.journal.chain import climb, is_taken
from workers.storage.errors import ObjectMissing
from workers.storage.failpoints import failpoint
from workers.storage.port import Created, ObjectStore

#: Writers that claim one stream at the same moment each need one more attempt.
_CLAIMS_MAX = 16

#: After a pause of so many seconds between two answers of the store, by its clock, the boundary is
#: read before a new segment counts: a tenth of the shortest grace of collection. Until then, no
#: name that this writer knew to be taken can have become free.
STALL_SECONDS = 60

_NS = 1_000_000_000

#: The newest places that a claim looks at with one listing. A reader looks at all.
_LOOK_BACK_PLACES = 500


class Fenced(HoldfastError):
    """A writer with a newer epoch has taken the stream. This one stops for good."""

    code = "fenced"


class SegmentLost(ChainBroken):
    """A place is empty although later ones are not: an object of the journal was lost."""


@dataclass(frozen=True)
class WriterName:
    """Which stream is written, and the random name of who writes it now."""

    identity: Identity
    writer: bytes


class ChainWriter:
    """One writer's view of a chain. `wall_ns` is ingest's clock."""

    def __init__(self, store: ObjectStore, name: WriterName, wall_ns: Callable[[], int]) -> None:
        self._store = store
        self._identity = name.identity
        self._writer = name.writer
        self._wall_ns = wall_ns
        self._end: SegmentInfo | None = None
        self._epoch = 0
        self._fenced: Fenced | None = None
        self._boundary: Boundary | None = None
        self._seen_at = 0

    @property
    def end(self) -> SegmentInfo | None:
        """The newest segment that is known; None for an empty chain."""
        return self._end

    @property
    def epoch(self) -> int:
        """The epoch that was claimed; 0 before."""
        return self._epoch

    def find_end(self, hint: int = 0) -> SegmentInfo | None:
        """Find and check the newest segment. `hint`: a place that was known to exist.

        Raises SegmentLost where a later place is taken than the one after the end, ChainBroken and
        WireError where the newest segment is not what it should be.
        """
        self._seen_at = self._store_ns()
        self._boundary = newest_boundary(self._store, self._identity)
        known = self._boundary.first_place - 1 if self._boundary else 0
        if hint > known and self._exists(hint):
            known = hint
        place = self._last_place(known)
        self._end = self._checked(place) if place else None
        return self._end

    def _store_ns(self) -> int:
        """The store's clock as its newest answer has it; our own where it shows none."""
        return self._store.answered_at() or self._wall_ns()

    def _last_place(self, known: int) -> int:
        """The last place before an empty one after which a listing finds nothing."""
        while True:
            known = climb(self._store, self._identity, known)
            given_up = self._boundary.first_place - 1 if self._boundary else 0
            first = max(given_up + 1, known - _LOOK_BACK_PLACES + 1)
            listed = self._listed_from(first)
            self._check_gaps(first, listed)
            if not listed or listed[-1] <= known:
                return known
            known = listed[-1]

    def _check_gaps(self, first: int, listed: list[int]) -> None:
        """Raise SegmentLost if a place is empty before one that is listed."""
        expected = first
        for place in listed:
            while expected < place:
                if not self._exists(expected):
                    raise SegmentLost(
                        f"The chain of {self._identity} has nothing at place {expected}, "
                        f"but a segment at place {place}.",
                        hint="An object was lost. Bring it back from a copy of the store; until "
                        "then nothing is appended, and what lies before it can be restored.",
                    )
                expected += 1
            expected = place + 1

    def _exists(self, place: int) -> bool:
        return is_taken(self._store, self._identity, place)

    def _listed_from(self, first: int) -> list[int]:
        """Places from `first` on, as one page of a listing shows them."""
        after = chain_name(self._identity, first - 1) if first > 1 else ""
        places = []
        for entry in self._store.list(
            chain_prefix(self._identity), after, limit=_LOOK_BACK_PLACES + 1
        ):
            place = place_of(entry.name)
            if place is None:
                raise ChainBroken(
                    f"{entry.name} lies in the chain of {self._identity} and is no segment.",
                    hint="Nothing but ingest may write below chain/; remove what does not belong.",
                )
            places.append(place)
        return places

    def _checked(self, place: int) -> SegmentInfo:
        """The segment at `place`, read whole, with its hash and its link to the one before."""
        try:
            given_up = self._boundary.newest if self._boundary else None
            if given_up is not None and place == given_up.place:
                raise ObjectMissing(self._store.label, chain_name(self._identity, place + 1))
            info = self._read_whole(place)
            before = self._before(place)
        except ObjectMissing as error:
            raise SegmentLost(
                f"The chain of {self._identity} has lost {error.name}.",
                hint="Bring it back from a copy of the store.",
            ) from None
        check_follows(before, info)
        return info

    def _before(self, place: int) -> SegmentInfo | None:
        """The trailer of the segment before `place`, which may be given up."""
        if self._boundary is not None and place == self._boundary.first_place:
            return self._boundary.newest
        return self._trailer(place - 1) if place > 1 else None

    def _read_whole(self, place: int) -> SegmentInfo:
        info = verify_segment(self._store.get(chain_name(self._identity, place)))
        if info.place != place or info.identity_hash != self._identity.hash:
            raise ChainBroken(
                f"The object at place {place} of {self._identity} is a segment of another place.",
                hint="It was copied or moved. Bring the right one back from a copy of the store.",
            )
        return info

    def _trailer(self, place: int) -> SegmentInfo:
        return parse_trailer(self._store.get_tail(chain_name(self._identity, place), TRAILER_BYTES))

    def find_key(self, generation: bytes, offered: bytes) -> StoredKey:
        """Compare the stored key object of a generation with the one that the agent has."""
        try:
            stored = self._store.get(key_name(self._identity, generation))
        except ObjectMissing:
            return StoredKey.MISSING
        return compare_key(stored, offered)

    def make_key(self, generation: bytes, offered: bytes) -> StoredKey:
        """Create the key object; SAME if it is there now with this content, else OTHER."""
        name = key_name(self._identity, generation)
        if self._store.put_if_absent(name, offered) is Created.CREATED:
            failpoint("key_after_create_before_segment")
            return StoredKey.SAME
        return self.find_key(generation, offered)

    def claim(self) -> SegmentInfo:
        """Create an epoch segment at the chain's end; returns it. Fences every older writer.

        What a predecessor appended meanwhile is read and stays: it is true data.
        """
        for _ in range(_CLAIMS_MAX):
            wanted, data = self._epoch_segment()
            failpoint("epoch_after_build_before_create")
            if self._create(wanted.place, data):
                failpoint("epoch_after_create_before_welcome")
                self._end, self._epoch = wanted, wanted.epoch
                return wanted
            self.find_end(wanted.place)
        raise Fenced(f"Other writers of {self._identity} claimed it {_CLAIMS_MAX} times before us.")

    def _epoch_segment(self) -> tuple[SegmentInfo, bytes]:
        end = self._end
        data, info = build_segment(
            SegmentInfo(
                kind=KIND_EPOCH,
                place=end.place + 1 if end else 1,
                epoch=end.epoch + 1 if end else 1,
                previous=end.hash if end else bytes(32),
                identity_hash=self._identity.hash,
                generation=end.generation if end else NO_GENERATION,
                writer=self._writer,
                first_seq=end.last_seq + 1 if end else 1,
                last_seq=end.last_seq if end else 0,
                time_newest=end.time_newest if end else 0,
                committed_at=self._committed_at(),
                record_hash=end.record_hash if end else bytes(32),
                state=end.state if end else 0,
            ),
            (),
        )
        return info, data

    def append(self, batch: Batch) -> SegmentInfo:
        """Make the batch's frames the next segment; durable when this returns.

        Raises Fenced for good once a newer epoch is found, StoreError where the store failed (the
        frames must be sent again, to whoever claims next).
        """
        if self._fenced is not None:
            raise self._fenced
        assert self._end is not None, "append before claim"
        first, last = batch.frames[0].header, batch.frames[-1].header
        data, info = gather_segment(
            SegmentInfo(
                kind=KIND_DATA,
                place=self._end.place + 1,
                epoch=self._epoch,
                previous=self._end.hash,
                identity_hash=self._identity.hash,
                generation=first.generation,
                writer=self._writer,
                first_seq=first.first_seq,
                last_seq=last.last_seq,
                time_newest=last.time_last,
                committed_at=self._committed_at(),
                record_hash=last.record_hash,
                state=last.state,
            ),
            batch.frames,
        )
        check_follows(self._end, info)
        failpoint("segment_after_build_before_create")
        if not self._create(info.place, data):
            raise self._why_taken(info.place)
        failpoint("segment_after_create_before_stored")
        self._end = info
        return info

    def _create(self, place: int, data: Content) -> bool:
        """Whether the object at `place` is ours: made now, or by an earlier try of this writer.

        Fenced where we stalled for so long that the name had been taken, and was collected since.
        """
        name = chain_name(self._identity, place)
        created = self._store.put_if_absent(name, data) is Created.CREATED
        if not created and self._store.get(name) != data:
            return False
        now = self._store_ns()
        if now - self._seen_at > STALL_SECONDS * _NS:
            boundary = newest_boundary(self._store, self._identity)
            if boundary is not None and place < boundary.first_place:
                self._fenced = Fenced(
                    f"Place {place} of {self._identity} was given up while this writer stalled.",
                    hint="A newer writer went on meanwhile. Look at this machine's load and clock.",
                )
                raise self._fenced
        self._seen_at = now
        return True

    def _why_taken(self, place: int) -> HoldfastError:
        """Our next place is taken: by a newer epoch, or by what should not exist."""
        try:
            other = self._read_whole(place)
        except WireError as error:
            return ChainBroken(
                f"Place {place} of {self._identity} is taken by something else: {error.message}",
                hint="Nothing but ingest may write below chain/; remove what does not belong.",
            )
        if other.epoch > self._epoch:
            self._fenced = Fenced(
                f"A newer writer has claimed {self._identity} with epoch {other.epoch}; "
                f"ours was {self._epoch}.",
                hint="If this repeats, two agents may have the same identity.",
            )
            return self._fenced
        return ChainBroken(
            f"Place {place} of {self._identity} was written with epoch {other.epoch} "
            f"after epoch {self._epoch} was claimed.",
            hint="The store broke its promise to create an object once. Check its health.",
        )

    def _committed_at(self) -> int:
        """Now, but never before the segment that it follows."""
        return max(self._wall_ns(), self._end.committed_at if self._end else 0)
