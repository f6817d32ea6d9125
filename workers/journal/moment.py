"""A journal opened for one moment: by index objects as far as they go, by segments around it."""

from __future__ import annotations

from dataclasses import replace

from host_agent.wire.keys import JournalKey
from host_agent.wire.names import Identity
from workers.journal.points import Point, resolve
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.storage.port import ObjectStore


def open_at(
    store: ObjectStore,
    identity: Identity,
    key: JournalKey,
    text: str,
    options: ReadOptions | None = None,
) -> tuple[Journal, Point]:
    """The moment that the selector names, and its journal, whose map can be made.

    A moment that an index object stands for is opened again, by index objects up to the block that
    holds it and by that block's segments. Raises what `open_journal` and `resolve` raise.
    """
    options = replace(options or ReadOptions(), use_index=True)
    journal = open_journal(store, identity, key, options)
    try:
        point = resolve(journal, text)
        if journal.is_open(point.row):
            return journal, point
        place = journal.frame(journal.frame_of(point.row)).place
        newer = journal.newest.place if journal.newest else place
    except BaseException:
        journal.close()
        raise
    journal.close()
    upto = replace(options, until=min(place, newer))
    journal = open_journal(store, identity, key, upto)
    if journal.damage is not None:
        damage = journal.damage
        journal.close()
        raise damage
    return journal, point
