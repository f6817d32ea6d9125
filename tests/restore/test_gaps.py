"""The times at which nothing can be chosen are told, with their cause; what lies before stays."""

from __future__ import annotations

import pytest

from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from workers.journal.errors import InsideSync
from workers.journal.points import list_points, resolve
from workers.journal.reader import open_journal
from workers.restore.listing import summarise

DISKS = {"root": 64 * 512}


def built() -> JournalBuilder:
    """A first sync, a checkpoint, a forced sync, and one of a new generation that is not over."""
    builder = JournalBuilder(MemoryStore())
    builder.generation(DISKS)
    builder.sync(0, 0, b"a" * 512, 0)
    builder.end()
    builder.write(0, 512, b"b" * 512)
    builder.mark(kind="tagged", tag="before")
    builder.begin(DISKS, cause="forced")
    builder.write(0, 1024, b"c" * 512)
    builder.end()
    builder.write(0, 1024, b"d" * 512)
    builder.generation(DISKS, goes_on=True, cause="unclean_stop")
    builder.write(0, 0, b"e" * 512)
    builder.segment()
    return builder


@pytest.mark.invariant("I12")
def test_each_sync_is_a_gap_with_its_cause() -> None:
    builder = built()
    with open_journal(builder.store, builder.identity, builder.tenant_key) as journal:
        listing = summarise(journal)
        first, forced, last = listing.gaps
        assert [gap.cause for gap in listing.gaps] == ["first_start", "forced", "unclean_stop"]
        assert (first.after, first.until) == (None, listing.history[0].first_time)
        assert (forced.after, forced.until) == (
            listing.history[0].last_time,
            listing.history[1].first_time,
        )
        assert (last.after, last.until) == (listing.history[1].last_time, None)
        shown = listing.as_dict()["gaps"]
        assert isinstance(shown, list)
        assert shown[-1]["until"] is None
        # Old checkpoints stay good; inside a gap nothing can be chosen.
        assert [mark.tag for mark in list_points(journal)] == ["before"]
        assert resolve(journal, "tag:before").seq == 5
        with pytest.raises(InsideSync):
            resolve(journal, "seq:1")
