"""Goes through a built journal record by record beside the model, and names every moment's
images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.builder import JournalBuilder, Recorded
from tests.model.model import BEGIN, END, MORE, Model
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from workers.journal.errors import SelectorError
from workers.journal.points import resolve
from workers.journal.reader import open_journal

SHAPE = Shape({"root": 64, "data": 40})


@dataclass
class Moment:
    """A position, whether it may be chosen, and what the disks hold there."""

    selector: str
    may_be_chosen: bool
    images: dict[str, bytes]
    recorded: Recorded


def build(seed: int, shape: Shape = SHAPE) -> tuple[JournalBuilder, MemoryStore]:
    """A random workload's journal in memory."""
    rng = random.Random(seed)
    store = MemoryStore()
    builder = JournalBuilder(store, rng=rng)
    Workload(builder, shape, rng).run()
    return builder, store


def moments(builder: JournalBuilder) -> Iterator[Moment]:
    """Every position of the journal, by the model."""
    model, generation, is_syncing = Model(), -1, True
    for recorded in builder.log:
        if recorded.generation != generation:
            generation = recorded.generation
            model.start_generation(keep=generation > 0)
        assert model.apply(recorded.event) == recorded.seq
        if recorded.event.op in (BEGIN, END):
            is_syncing = recorded.event.op == BEGIN
        choosable = not is_syncing and not recorded.event.flags & MORE
        name = builder.generations[generation].hex()
        images = model.images() if choosable else {}
        yield Moment(f"seq:{name}/{recorded.seq}", choosable, images, recorded)


def wrong_moments(builder: JournalBuilder, store: MemoryStore) -> tuple[list[str], int]:
    """(moments whose restore is not the model's image, moments compared). The source plays no
    part."""
    wrong, compared = [], 0
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        assert journal.damage is None, journal.damage
        images = Images(journal)
        for moment in moments(builder):
            try:
                found = images.of(resolve(journal, moment.selector))
            except SelectorError:
                if moment.may_be_chosen:
                    wrong.append(moment.selector)
                continue
            compared += 1
            if not moment.may_be_chosen or found != moment.images:
                wrong.append(moment.selector)
    return wrong, compared
