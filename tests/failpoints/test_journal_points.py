"""What is worked over a journal dies at each of its failpoints; run again it ends, the journal
verifies to its last byte, and every moment is as the model says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from infra.demo.site import tool
from tests.failpoints.registry import failpoints
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.storage.url import open_store

_SECONDS = 60.0
#: Which command of `holdfast journal` comes to a failpoint, by the failpoint's noun.
COMMANDS = {"index": "index", "hashes": "hashes"}
#: A few hundred places: index objects stand for 256 each.
_SHAPE = Shape({"root": 64, "data": 40}, operations=400, segment_chance=0.75)
POINTS = sorted(point for point in failpoints()["journal"] if point.partition("_")[0] in COMMANDS)

pytestmark = pytest.mark.invariant("I3", "I15")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", POINTS)
def test_work_that_dies_there_is_done_again(point: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    rng = random.Random(3)
    store = open_store(url, create=True)
    builder = JournalBuilder(store, rng=rng)
    Workload(builder, _SHAPE, rng).run()
    key = tmp_path / "tenant.key"
    key.touch(0o600)
    key.write_bytes(builder.tenant_key.dump())
    where = ["--store", url, "--tenant", "acme", "--key-file", str(key)]
    words = [str(tool("holdfast")), "journal", COMMANDS[point.partition("_")[0]], *where]
    ended = subprocess.run(
        words,
        env={**os.environ, "HOLDFAST_FAILPOINT": point},
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    subprocess.run(words, check=True, capture_output=True, timeout=_SECONDS)
    verify = [str(tool("holdfast")), "verify", "--deep", *where, "--json"]
    said = subprocess.run(verify, capture_output=True, timeout=_SECONDS, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert json.loads(said.stdout)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        found = Images(journal).of(resolve(journal, "latest-write"))
    assert found == builder.model.images()
