"""Folding: what is older than a history window becomes layers, and a boundary says so.

A run goes in steps. Each makes the layers' objects, then the list that names them, then the
boundary that names the list; only the boundary changes what a reader sees. All are created if
absent, and what an ended run left is used again if it fits, else made anew under the next number.
Nothing is deleted here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.keys import JournalKey
from host_agent.wire.names import Identity, chain_name, chain_prefix, place_of
from host_agent.wire.record import State
from host_agent.wire.segment import (
    KIND_DATA,
    TRAILER_BYTES,
    SegmentInfo,
    pack_trailer,
    parse_trailer,
)
from workers.journal import indexfile, retention
from workers.journal.boundary import Boundary, newest_boundary, set_boundary
from workers.journal.chain import climb, damaged, is_taken, read_tail
from workers.journal.content import ContentTools, Fetch
from workers.journal.errors import JournalError
from workers.journal.layerfile import ListClear
from workers.journal.layering import AnchorKeeper, Layering, find_list, unfinished_list
from workers.journal.pins import read_pins
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.retention import NANOSECONDS, Cut, Policy
from workers.journal.statements import read_statement
from workers.storage.errors import ObjectMissing
from workers.storage.failpoints import failpoint
from workers.storage.port import Created, ObjectStore

#: What one step takes at most: temporary files hold its data, packed.
STEP_PLACES = 65_536
STEP_BYTES = 64 << 30

#: A frame's flag: its last record goes on in the next.
_ENDS_INSIDE = 4


class FoldOvertaken(JournalError):
    """Another fold of the same stream made something else meanwhile."""

    code = "fold_overtaken"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} was made by another fold of this stream meanwhile.",
            hint="Run it again; one fold of a stream at a time is enough.",
            retryable=True,
        )


@dataclass(frozen=True)
class FoldTools:
    """What a fold takes from outside: `fetch` opens frames, `token` gives random bytes (for a key
    of temporary files), `hashes` makes the hash list of the journal that was folded, `advance`
    hears bytes of data, `say` a sentence now and then."""

    fetch: Fetch
    token: Callable[[int], bytes]
    spool_directory: Path | None = None
    hashes: Callable[[Journal], object] | None = None
    advance: Callable[[int], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None


@dataclass
class Folded:
    """What a run did. Places up to `place` lie in layers; nanoseconds; bytes of new objects."""

    place: int = 0
    folded_places: int = 0
    history_from: int = 0
    reason: str = ""
    made: list[str] = field(default_factory=list)
    bytes: int = 0
    layers: int = 0
    boundary: int = 0
    problems: list[HoldfastError] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "place": self.place,
            "folded_places": self.folded_places,
            "history_from": self.history_from,
            "reason": self.reason,
            "objects": len(self.made),
            "bytes": self.bytes,
            "layers": self.layers,
            "boundary": self.boundary,
            "problems": [problem.as_dict() for problem in self.problems],
        }


class Folder:
    """One run over one stream. `steps` goes from one object operation to the next."""

    def __init__(
        self,
        store: ObjectStore,
        stream: tuple[Identity, JournalKey],
        policy: Policy,
        tools: FoldTools,
    ) -> None:
        self._store = store
        self._identity, self._key = stream
        self._policy = policy
        self._tools = tools
        self.result = Folded()

    def run(self) -> Folded:
        """All steps at once. What `steps` raises."""
        for _ in self.steps():
            pass
        return self.result

    def steps(self) -> Iterator[str]:
        """Fold all that is due; yields the name of each object that was made.

        Raises JournalDamaged where what is to be folded cannot be read: nothing behind it is
        folded. FoldOvertaken, UnknownBase, SpoolFull, key errors, StoreError.
        """
        while True:
            boundary = newest_boundary(self._store, self._identity)
            self._note(boundary)
            cut = self._cut(boundary)
            if cut is None:
                return
            self.result.reason = cut.reason
            before = boundary.first_place if boundary else 1
            if not (yield from self._step(boundary, cut)):
                continue
            newest = newest_boundary(self._store, self._identity)
            self._note(newest)
            if newest is None or newest.first_place <= before:
                return
            self.result.folded_places += newest.first_place - before

    def _note(self, boundary: Boundary | None) -> None:
        if boundary is not None:
            self.result.boundary = boundary.number
            self.result.place = boundary.first_place - 1
            self.result.history_from = boundary.history_from

    # -- how far

    def _cut(self, boundary: Boundary | None) -> Cut | None:
        """The next place to fold up to; None if nothing is due."""
        first = boundary.first_place if boundary else 1
        newest = climb(self._store, self._identity, first - 1)
        if newest <= first:
            return None
        by_window = retention.newest_before(
            self._committed_at, first, newest, self._window_begins(newest)
        )
        cut = retention.choose_cut(by_window, self._by_size(boundary, first), newest)
        bounded = self._bounded(first, cut.place)
        aligned = retention.align(bounded, first, indexfile.SPAN)
        for place in range(aligned, first - 1, -1):
            if self._may_end_at(place):
                return Cut(place, cut.reason)
        return None

    def _window_begins(self, newest: int) -> int:
        """Where the history window begins: ingest's clock, nanoseconds."""
        stated = read_statement(self._store, self._identity)
        now = retention.history_now(
            self._committed_at(newest), stated.time if stated else 0, self._store.answered_at()
        )
        return now - self._policy.window_seconds * NANOSECONDS

    def _by_size(self, boundary: Boundary | None, first: int) -> int:
        if self._policy.size_bytes_max is None:
            return 0
        layers = 0
        if boundary is not None:
            clear = find_list(self._store, self._identity, boundary.layers)
            layers = sum(size for _, size in clear.objects())
        sizes = list(self._sizes(first))
        return retention.place_by_size(sizes, layers, self._policy.size_bytes_max)

    def _sizes(self, first: int) -> Iterator[tuple[int, int]]:
        after = chain_name(self._identity, first - 1) if first > 1 else ""
        for listed in self._store.list(chain_prefix(self._identity), after):
            place = place_of(listed.name)
            if place is not None:
                yield place, listed.size

    def _bounded(self, first: int, last: int) -> int:
        """`last`, or an earlier place that is enough for one step."""
        total = 0
        for place, size in self._sizes(first):
            total += size
            if place >= last or place - first >= STEP_PLACES or total >= STEP_BYTES:
                return min(place, last)
        return last

    def _committed_at(self, place: int) -> int:
        name = chain_name(self._identity, place)
        try:
            return parse_trailer(self._store.get_tail(name, TRAILER_BYTES)).committed_at
        except (ObjectMissing, WireError) as error:
            raise damaged(self._identity, place, error) from error

    def _may_end_at(self, place: int) -> bool:
        """Whether a layer may end there: not inside a sync or a request, with records before."""
        try:
            info, frames = read_tail(self._store, self._identity, place)
        except (ObjectMissing, WireError) as error:
            raise damaged(self._identity, place, error) from error
        if info.kind != KIND_DATA or info.state != State.RECORDING:
            return False
        return not frames[-1].header.flags & _ENDS_INSIDE

    # -- one step

    def _step(self, boundary: Boundary | None, cut: Cut) -> Generator[str, None, bool]:
        """Whether the boundary was set; not if what is pinned changed meanwhile."""
        after = boundary.layers if boundary else 0
        clear, number = unfinished_list(self._store, self._identity, after, cut.place)
        if clear is not None:
            yield self._set_boundary(clear, cut)
            return True
        pins = read_pins(self._store, self._identity)
        with self._opened(cut.place) as journal:
            layering = Layering(journal, number, pins, self._reopen, self._content_tools())
            yield from layering.steps(self._put)
            if read_pins(self._store, self._identity) != pins:
                return False
            clear = layering.clear()
            name, data = layering.finished()
            failpoint("layers_after_parts_before_list")
            yield self._put(name, data)
            failpoint("layers_after_list_before_boundary")
            yield self._set_boundary(clear, cut)
            failpoint("boundary_after_create_before_next")
        if self._tools.hashes is not None:
            # By the layers: their data lies in the order in which it is hashed.
            with self._opened(cut.place) as journal:
                self._tools.hashes(journal)
                yield "hash list"
        return True

    def _content_tools(self) -> ContentTools:
        tools = self._tools
        return ContentTools(tools.fetch, tools.token(32), tools.spool_directory, tools.advance)

    def _opened(self, place: int) -> Journal:
        """The journal up to a place, whole."""
        options = ReadOptions(
            self._tools.spool_directory, use_index=True, until=place, keeper=AnchorKeeper
        )
        journal = open_journal(self._store, self._identity, self._key, options)
        if journal.damage is not None:
            journal.close()
            raise journal.damage
        return journal

    def _reopen(self, place: int) -> Journal:
        self._tools.say(f"Opening the journal up to place {place} for a kept checkpoint.")
        return self._opened(place)

    def _put(self, name: str, data: bytes) -> str:
        """Create an object, or find that an earlier run made the same."""
        failpoint("layer_after_build_before_create")
        if self._store.put_if_absent(name, data) is Created.CREATED:
            self.result.made.append(name)
            self.result.bytes += len(data)
        elif self._store.get(name) != data:
            raise FoldOvertaken(name)
        return name

    def _set_boundary(self, clear: ListClear, cut: Cut) -> str:
        newest: SegmentInfo = clear.newest
        # One more answer, for the store's time of now.
        is_taken(self._store, self._identity, newest.place)
        set_at = self._store.answered_at() or newest.committed_at
        wanted = Boundary(
            number=0,
            layers=clear.number,
            first_place=newest.place + 1,
            trailer=pack_trailer(newest).hex(),
            set_at=set_at,
            reason=cut.reason,
            window_seconds=self._policy.window_seconds,
            history_from=newest.committed_at,
        )
        boundary = set_boundary(self._store, self._identity, wanted)
        self.result.layers = len(clear.layers)
        return f"boundary {boundary.number}"
