"""Opening a journal from the bucket and the tenant's key alone.

One pass over the chain: tails ahead in parallel, each segment checked against the one before,
indexes opened, the record hash followed across frames and segments, records kept as columns on
disk. The pass stops at the first damage; everything before it stays usable, nothing after it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from workers.journal.boundary import newest_boundary
from workers.journal.chain import DAMAGE, ChainWalk, damaged, read_tail
from workers.journal.errors import (
    JournalCut,
    JournalDamaged,
    JournalError,
    JournalMoved,
    NoSuchStream,
    PayloadDamaged,
    SegmentLost,
)
from workers.journal.indexes import IndexSource
from workers.journal.indexfile import IndexBody, IndexHead
from workers.journal.journal import FrameInfo, Journal, Keeper
from workers.journal.layers import find_layers
from workers.journal.opening import KeyRing, SegmentOpener
from workers.journal.statements import Statement, read_statement
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

__all__ = ["FrameInfo", "Journal", "ReadOptions", "data_lost", "open_journal"]


@dataclass(frozen=True)
class ReadOptions:
    """`spool_directory` holds temporary files (None: the system's); `progress` hears places done.

    With `use_index`, index objects stand for the segments that they cover: fewer requests, and only
    the moments of the other segments have a map. `until` ends the reading after that place.
    """

    spool_directory: Path | None = None
    progress: Callable[[int], None] | None = None
    use_index: bool = False
    until: int | None = None
    keeper: Callable[[Journal], Keeper] | None = None


#: How often a journal that was given up while it was opened is opened again.
_OPENINGS_MAX = 4


def open_journal(
    store: ObjectStore,
    identity: Identity,
    tenant_key: TenantKey,
    options: ReadOptions | None = None,
) -> Journal:
    """Read a stream's whole chain, or what layers left of it.

    Damage does not raise here: it is in the journal's `damage`, and moments before it can be
    chosen. Raises NoSuchStream; WrongKey, BadKeyFile or KeyObjectLost if nothing can be opened at
    all; StoreError.
    """
    for _ in range(_OPENINGS_MAX):
        try:
            journal = _open(store, identity, tenant_key, options or ReadOptions())
        except JournalMoved:
            continue
        if not isinstance(journal.damage, SegmentLost) or not _has_moved(journal):
            return journal
        journal.close()
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


def _open(
    store: ObjectStore, identity: Identity, tenant_key: TenantKey, options: ReadOptions
) -> Journal:
    keys = KeyRing(store, identity, tenant_key)
    # Before the chain: what is stated now must be there when the chain is read.
    statement = read_statement(store, identity)
    journal = Journal(store, identity, keys, options.spool_directory)
    try:
        layers = find_layers(store, identity, keys)
        if layers is not None:
            journal.take_layers(layers)
        if options.keeper is not None:
            journal.keeper = options.keeper(journal)
        _read(journal, options)
        if journal.damage is not None and not journal.rows:
            raise journal.damage.__cause__ or journal.damage
        if not journal.segments:
            raise NoSuchStream(
                f"{store.label} holds no journal of {identity}.",
                hint="`holdfast restore list` shows what it holds.",
            )
        journal.statement = statement
        if journal.damage is None and statement is not None and options.until is None:
            journal.damage = _cut(journal, statement)
    except _IndexUnfit:
        journal.close()
        return _open(store, identity, tenant_key, replace(options, use_index=False))
    except BaseException:
        journal.close()
        raise
    return journal


class _IndexUnfit(Exception):
    """An index object and the chain contradict each other: the chain is read, and decides."""


def _read(journal: Journal, options: ReadOptions) -> None:
    source = None
    if options.use_index:
        source = IndexSource(journal.store, journal.identity, journal.keys, options.until)
    indexed = 0
    while True:
        place = journal.newest.place + 1 if journal.newest else 1
        found = source.take(place) if source is not None else None
        if found is not None:
            _take_index(journal, *found)
            indexed = found[0].last_place
            continue
        stop = source.segments_until(place) if source is not None else options.until
        _read_segments(journal, options, stop)
        newest = journal.newest.place if journal.newest else 0
        if indexed and newest == indexed:
            _check_index_end(journal)
        if journal.damage is not None or stop is None or newest in (options.until, place - 1):
            return


def _take_index(journal: Journal, head: IndexHead, body: IndexBody) -> None:
    try:
        journal.take_index(head, body)
    except (*DAMAGE, KeyError, ValueError, IndexError) as error:
        raise _IndexUnfit from error


def _check_index_end(journal: Journal) -> None:
    """No segment follows the last index object: it must end as the chain does."""
    newest = journal.newest
    assert newest is not None
    try:
        info, _ = read_tail(journal.store, journal.identity, newest.place)
    except (ObjectMissing, *DAMAGE) as error:
        raise _IndexUnfit from error
    if journal.damage is not None or info != newest:
        raise _IndexUnfit


def _read_segments(journal: Journal, options: ReadOptions, stop: int | None) -> None:
    """Segments up to the place `stop`, or to the chain's end."""
    opener = SegmentOpener(journal.store, journal.identity, journal.keys)
    walk = ChainWalk(journal.store, journal.identity, opener, journal.newest, stop)
    for segment in walk:
        try:
            journal.take(segment)
        except (JournalDamaged, *DAMAGE) as error:
            journal.damage = damaged(journal.identity, segment.info.place, error)
            journal.damage.__cause__ = error
            return
        if options.progress is not None:
            options.progress(segment.info.place)
    journal.damage = walk.damage


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
