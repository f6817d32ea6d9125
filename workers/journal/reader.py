"""Opening a journal from the bucket and the tenant's key alone.

One pass over the chain: tails ahead in parallel, each segment checked against the one before,
indexes opened, the record hash followed across frames and segments, records kept as columns on
disk. The pass stops at the first damage; everything before it stays usable, nothing after it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from host_agent.wire.keys import JournalKey
from host_agent.wire.names import Identity
from host_agent.wire.segment import SegmentInfo
from workers.journal.blocks import FoundIndex, IndexBlock
from workers.journal.boundary import newest_boundary
from workers.journal.chain import DAMAGE, ChainWalk, Loaded, damaged, read_tail
from workers.journal.errors import (
    JournalCut,
    JournalDamaged,
    JournalError,
    JournalMoved,
    NoSuchStream,
    PayloadDamaged,
    SegmentLost,
)
from workers.journal.indexes import IndexChoice, IndexSource, IndexUnfit
from workers.journal.journal import Journal, Keeper
from workers.journal.layers import find_layers
from workers.journal.opening import KeyRing, OpenedSegment, SegmentOpener
from workers.journal.runs import FrameInfo
from workers.journal.statements import Statement, read_statement
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

__all__ = ["FrameInfo", "Journal", "ReadOptions", "data_lost", "open_journal"]


@dataclass(frozen=True)
class ReadOptions:
    """`spool_directory` holds temporary files (None: the system's); `progress` hears places done.

    With `use_index`, index objects stand for the segments that they cover: fewer requests, and only
    the moments of the other segments have a map; `choice` says which of them. `until` ends the
    reading after that place.
    """

    spool_directory: Path | None = None
    progress: Callable[[int], None] | None = None
    use_index: bool = False
    until: int | None = None
    choice: IndexChoice = field(default_factory=IndexChoice)
    keeper: Callable[[Journal], Keeper] | None = None


#: Segments that are opened together: their columns fit a processor's cache, and what a step costs
#: however much it does counts no more.
_TOGETHER_RECORDS = 32 * 1024
_TOGETHER_SEGMENTS = 64

#: How often a journal that was given up while it was opened is opened again.
_OPENINGS_MAX = 4


def open_journal(
    store: ObjectStore,
    identity: Identity,
    key: JournalKey,
    options: ReadOptions | None = None,
) -> Journal:
    """Read a stream's whole chain, or what layers left of it.

    Damage does not raise here: it is in the journal's `damage`, and moments before it can be
    chosen. Raises NoSuchStream; WrongKey, BadKeyFile or KeyObjectLost if nothing can be opened at
    all; StoreError.
    """
    for _ in range(_OPENINGS_MAX):
        try:
            return _open(store, identity, key, options or ReadOptions())
        except JournalMoved:
            continue
    raise JournalMoved(f"The journal of {identity} is given up again and again while it is read.")


def _has_moved(journal: Journal) -> bool:
    """Whether a newer boundary stands than the one that the journal was opened by."""
    newest = newest_boundary(journal.store, journal.identity)
    return newest is not None and newest.first_place != journal.first_place


def data_lost(journal: Journal, place: int, error: ObjectMissing) -> JournalError:
    """The error for a frame's object that is missing: collected since the journal was opened, or
    lost."""
    if _has_moved(journal):
        return JournalMoved(f"{error.name} was collected while it was read.")
    return PayloadDamaged(place, f"The data of {error.name} cannot be read: {error.message}")


def _open(store: ObjectStore, identity: Identity, key: JournalKey, options: ReadOptions) -> Journal:
    keys = KeyRing(store, identity, key)
    # Before the chain: what is stated now must be there when the chain is read.
    statement = read_statement(store, identity)
    journal = Journal(store, identity, keys, options.spool_directory)
    try:
        layers = find_layers(store, identity, keys)
        if layers is not None:
            journal.take_layers(layers)
        if options.keeper is not None:
            journal.keeper = options.keeper(journal)
        _Reading(journal, key, options).run()
        if isinstance(journal.damage, SegmentLost) and _has_moved(journal):
            raise JournalMoved(f"The journal of {identity} was given up while it was opened.")
        if journal.damage is not None and not journal.rows:
            raise journal.damage.__cause__ or journal.damage
        if not journal.segments and journal.layers is None:
            raise NoSuchStream(
                f"{store.label} holds no journal of {identity}.",
                hint="`holdfast restore list` shows what it holds.",
            )
        journal.statement = statement
        if journal.damage is None and statement is not None and options.until is None:
            journal.damage = _cut(journal, statement)
    except IndexUnfit as unfit:
        journal.close()
        return _open(store, identity, key, replace(options, choice=unfit.choice))
    except BaseException:
        journal.close()
        raise
    return journal


class _Reading:
    """One pass over a chain: by index objects as far as they go, by segments around them."""

    def __init__(self, journal: Journal, key: JournalKey, options: ReadOptions) -> None:
        self._journal = journal
        self._key = key
        self._options = options
        ends = [end for end in (options.until, options.choice.until) if end is not None]
        self._choice = replace(options.choice, until=min(ends, default=None))

    def run(self) -> None:
        """Read to the chain's end, to the place `until`, or to the first damage."""
        journal = self._journal
        source = None
        if self._options.use_index:
            choice = replace(self._choice, first_place=journal.first_place)
            source = IndexSource(journal.store, journal.identity, journal.keys, choice)
        with source or nullcontext():
            while True:
                place = journal.newest.place + 1 if journal.newest else 1
                found = source.take(place) if source is not None else None
                if found is not None:
                    self._take_index(found)
                    continue
                stop = self._stop(source, place)
                self._read_segments(stop)
                newest = journal.newest.place if journal.newest else 0
                if isinstance(journal.runs and journal.runs[-1], IndexBlock):
                    self._check_end()
                if journal.damage is not None or stop is None:
                    return
                if newest in (self._options.until, place - 1):
                    return

    def _stop(self, source: IndexSource | None, place: int) -> int | None:
        """The place up to which segments are read from `place` on; None: to the chain's end."""
        ends = [self._options.until, source.next_start(place) if source is not None else None]
        return min((end for end in ends if end is not None), default=None)

    def _without(self, level: int, number: int) -> IndexChoice:
        """All but one index object."""
        return replace(self._choice, excluded=self._choice.excluded | {(level, number)})

    def _take_index(self, found: FoundIndex) -> None:
        journal, head = self._journal, found.head
        others = self._without(head.level, head.number)

        def instead() -> Journal:
            options = ReadOptions(
                self._options.spool_directory, use_index=True, until=head.last_place, choice=others
            )
            other = open_journal(journal.store, journal.identity, self._key, options)
            if other.damage is not None:
                other.close()
                raise other.damage
            return other

        try:
            journal.take_index(found, instead)
        except (*DAMAGE, KeyError, ValueError, IndexError) as error:
            raise IndexUnfit(others) from error

    def _check_end(self) -> None:
        """No segment follows the last index object: it must end as the chain does."""
        newest = self._journal.newest
        assert newest is not None
        if self._journal.damage is not None or not self._is_of_chain(newest):
            raise IndexUnfit(self._of_this_chain())

    def _is_of_chain(self, newest: SegmentInfo) -> bool:
        """Whether the chain holds the segment with that trailer."""
        try:
            info, _ = read_tail(self._journal.store, self._journal.identity, newest.place)
        except (ObjectMissing, *DAMAGE):
            return False
        return info == newest

    def _of_this_chain(self) -> IndexChoice:
        """The objects up to where they and the chain part: those before it are linked to it.

        All were made of one history, as each follows the one before it.
        """
        blocks = self._journal.blocks
        good, bad = 0, len(blocks)
        while good < bad:
            middle = (good + bad) // 2
            if self._is_of_chain(blocks[middle].head.newest):
                good = middle + 1
            else:
                bad = middle
        if good == len(blocks):
            # The chain holds the last of them, and is damaged behind it.
            good -= 1
        return replace(self._choice, until=blocks[good].head.last_place)

    def _read_segments(self, stop: int | None) -> None:
        """Segments up to the place `stop`, or to the chain's end."""
        journal, options = self._journal, self._options
        block = journal.behind
        if block is not None:
            try:
                journal.record_hash()
            except (ObjectMissing, *DAMAGE) as error:
                raise IndexUnfit(self._without(block.head.level, block.head.number)) from error
        opener = SegmentOpener(journal.store, journal.identity, journal.keys)
        walk = ChainWalk(journal.store, journal.identity, journal.newest, stop)
        with closing(_ahead(opener, iter(walk), journal.keeper is not None)) as opened:
            for segments in opened:
                try:
                    journal.take(segments)
                except (JournalDamaged, *DAMAGE) as error:
                    place = journal.newest.place + 1 if journal.newest else 1
                    journal.damage = damaged(journal.identity, place, error)
                    if error is not journal.damage:
                        journal.damage.__cause__ = error
                    return
                if options.progress is not None:
                    for segment in segments:
                        options.progress(segment.info.place)
        journal.damage = walk.damage


def _ahead(
    opener: SegmentOpener, walk: Iterator[Loaded], alone: bool
) -> Generator[list[OpenedSegment]]:
    """Segments opened, as many together as are worth it, while those before are taken."""
    with ThreadPoolExecutor(1, "holdfast-open") as pool:
        before: Future[list[OpenedSegment]] | None = None
        for segments in _together(walk, alone):
            coming = pool.submit(opener.open, segments)
            if before is not None:
                yield before.result()
            before = coming
        if before is not None:
            yield before.result()


def _together(walk: Iterator[Loaded], alone: bool) -> Iterator[list[Loaded]]:
    segments: list[Loaded] = []
    records = 0
    for segment in walk:
        segments.append(segment)
        records += sum(frame.header.records for frame in segment.frames)
        if alone or records >= _TOGETHER_RECORDS or len(segments) == _TOGETHER_SEGMENTS:
            yield segments
            segments, records = [], 0
    if segments:
        yield segments


def _cut(journal: Journal, statement: Statement) -> JournalDamaged | None:
    generations = journal.timeline.generations
    newest = generations[-1] if generations else None
    if statement.seq == 0 or (
        newest is not None
        and newest.hex == statement.generation
        and statement.seq <= newest.last_seq
    ):
        return None
    older = [g for g in generations[:-1] if g.hex == statement.generation]
    if older and statement.seq <= older[0].last_seq:
        return None
    place = journal.newest.place if journal.newest else 0
    return JournalCut(
        place + 1,
        f"The journal of {journal.identity} ends at place {place}, but sequence {statement.seq}"
        f" of generation {statement.generation} was stated to be stored:"
        " its newest segments were lost.",
    )
