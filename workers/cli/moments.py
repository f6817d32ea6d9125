"""The journal and the moment that a command's options name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from workers.cli.keyfiles import read_tenant_key
from workers.cli.options import PointOptions
from workers.journal.catalogue import choose_stream
from workers.journal.moment import open_at
from workers.journal.points import Point
from workers.journal.reader import Journal
from workers.journal.selectors import format_time
from workers.restore.progress import Progress
from workers.storage.url import open_store


@contextmanager
def opened(options: PointOptions, progress: Progress) -> Iterator[tuple[Journal, Point]]:
    """The journal and the moment that the options name."""
    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    identity = choose_stream(store, options.tenant, options.group, options.host)
    progress.start("read", None, "segments")
    journal, point = open_at(store, identity, key, options.at)
    with journal:
        progress.say(describe(point))
        yield journal, point


def describe(point: Point) -> str:
    """One sentence about the moment that was chosen."""
    name = f"sequence {point.seq} of generation {point.generation_name[:8]}"
    if point.checkpoint is not None:
        tag = f" ({point.checkpoint.tag})" if point.checkpoint.tag else ""
        name = f"checkpoint {point.checkpoint.id}{tag}, {name}"
    text = f"Chosen: {name}, written at {format_time(point.time)}"
    if point.quiet is not None:
        text += f"; {point.quiet.sentence()}"
    if point.damaged_ranges:
        text += f"; {len(point.damaged_ranges)} ranges could not be read from the source's disk"
    return text + "."
