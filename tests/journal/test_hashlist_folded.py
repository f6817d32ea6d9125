"""A hash list of a journal whose older part lies in layers is the same as without them."""

from __future__ import annotations

import pytest

from tests.journal.folding import Site
from tests.journal.test_hashlist import expected, key_of, opened
from workers.journal.hashlist import write_hashes
from workers.restore.fetch import fetch_all


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("seed", [4, 5])
def test_layers_make_no_difference(seed: int) -> None:
    site = Site.make(seed)
    builder = site.builder
    site.fold()
    written = write_hashes(builder.store, builder.identity, builder.tenant_key, fetch_all)
    found = opened(builder, written.place)
    for name, disk in builder.model.disks.items():
        assert found.disks[name] == expected(disk.image(), key_of(builder))
