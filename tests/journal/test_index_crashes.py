"""`holdfast journal index` killed at each step in a real process, run again: the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from host_agent.wire.names import index_name
from tests.journal.make_golden import journal
from tests.model.builder import JournalBuilder
from workers.journal.indexing import write_indexes
from workers.storage.failpoints import EXIT_STATUS
from workers.storage.url import open_store

pytestmark = pytest.mark.invariant("I10")

#: The failpoint, and whether the object is there when the process has ended.
POINTS = {
    "index_after_build_before_create": False,
    "object_after_sync_before_link": False,
    "object_after_link_before_directory_sync": True,
    "object_after_directory_sync_before_answer": True,
    "index_after_create_before_next": True,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JournalBuilder, bytes]:
    """A bucket, what wrote it, and the index object that belongs to it."""
    builder, store = journal()
    folder = tmp_path_factory.mktemp("site")
    for name, data in store.objects.items():
        path = folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    key = folder / "tenant.key"
    key.touch(0o600)
    key.write_bytes(builder.tenant_key.dump())
    write_indexes(store, builder.identity, builder.tenant_key)
    return folder, builder, store.objects[index_name(builder.identity, 1, 1)]


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point: str, site: tuple[Path, JournalBuilder, bytes]) -> None:
    folder, builder, wanted = site
    url = f"file://{folder / 'store'}"
    made = folder / "store" / index_name(builder.identity, 1, 1)
    made.unlink(missing_ok=True)
    words = ["journal", "index", "--store", url, "--tenant", builder.identity.tenant]
    ended = subprocess.run(
        [sys.executable, "-m", "workers.cli.main", *words, "--key-file", folder / "tenant.key"],
        env={**os.environ, "HOLDFAST_FAILPOINT": point},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == EXIT_STATUS, ended.stderr
    assert made.exists() is POINTS[point]
    assert not made.exists() or made.read_bytes() == wanted
    store = open_store(url)
    written = write_indexes(store, builder.identity, builder.tenant_key)
    assert len(written.made) == (not POINTS[point])
    assert made.read_bytes() == wanted
