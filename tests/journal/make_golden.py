"""Writes the golden index object of format version 1: `python -m tests.journal.make_golden FOLDER`.

It was made once and is never made again: it stands for the index objects that exist.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from unittest import mock

from host_agent.wire.names import index_name
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from workers.journal.indexing import write_indexes

SHAPE = Shape({"root": 64, "data": 40}, operations=900, segment_chance=0.4, frame_chance=0.5,
              generation_chance=0.002)  # fmt: skip


def journal() -> tuple[JournalBuilder, MemoryStore]:
    """A journal of one block and a little more, always the same."""
    rng = random.Random(20260101)
    store = MemoryStore()
    with mock.patch("os.urandom", random.Random(7).randbytes):
        builder = JournalBuilder(store, rng=rng)
        Workload(builder, SHAPE, rng).run()
    return builder, store


def main(folder: Path) -> None:
    """Write what is not there yet."""
    builder, store = journal()
    write_indexes(store, builder.identity, builder.tenant_key)
    data = store.objects[index_name(builder.identity, 1, 1)]
    with (folder / "index-1.bin").open("xb") as file:
        file.write(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
