"""What is worked over a journal dies at each of its failpoints; run again it ends, the journal
verifies to its last byte, and its newest moment is as the model says."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from infra.demo.processes import tool
from tests.failpoints.registry import failpoints
from tests.journal.folding import SHAPE, Site
from tests.lanes import tried
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape
from tests.restore.images import Images
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.storage.url import open_store

_SECONDS = 120.0
#: Which command of `holdfast` comes to a failpoint, by the failpoint's noun; `KEY` is the key file.
COMMANDS = {
    "index": ("journal", "index", "KEY"),
    "hashes": ("journal", "hashes", "KEY"),
    "layer": ("journal", "fold", "--window", "1", "KEY"),
    "layers": ("journal", "fold", "--window", "1", "KEY"),
    "boundary": ("journal", "fold", "--window", "1", "KEY"),
    "object": ("journal", "collect", "--grace", "0", "--force"),
}
POINTS = sorted(failpoints()["journal"])
#: Index objects stand for 256 places.
_LONG = Shape({"root": 64, "data": 40}, operations=400, segment_chance=0.75)

pytestmark = pytest.mark.invariant("I3", "I15")


class Bucket:
    """A journal of hours in a folder, with what wrote it."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        site = Site.make(6, shape)
        self.folder = folder
        self.builder: JournalBuilder = site.builder
        for name, data in site.store.objects.items():
            path = folder / "store" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        key = folder / "tenant.key"
        key.touch(0o600)
        key.write_bytes(self.builder.tenant_key.dump())

    def run(self, words: tuple[str, ...], point: str = "") -> int:
        """A command of `holdfast`; how it ended."""
        where = ["--store", f"file://{self.folder / 'store'}", "--tenant", "acme"]
        key = ["--key-file", str(self.folder / "tenant.key")] if "KEY" in words else []
        command = [str(tool("holdfast")), *(word for word in words if word != "KEY")]
        ended = subprocess.run(
            [*command, *where, *key],
            env={**os.environ, "HOLDFAST_FAILPOINT": point},
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        assert b"Traceback" not in ended.stderr, ended.stderr
        return ended.returncode

    def check(self) -> None:
        """Whole to the last byte, and the newest moment is the model's."""
        assert self.run(("verify", "--deep", "KEY")) == 0
        store = open_store(f"file://{self.folder / 'store'}")
        with open_journal(store, self.builder.identity, self.builder.tenant_key) as journal:
            found = Images(journal).of(resolve(journal, "latest-write"))
        assert found == self.builder.model.images()


def test_each_failpoint_has_its_command() -> None:
    assert {point.partition("_")[0] for point in POINTS} <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", [p for p in POINTS if p.partition("_")[0] in COMMANDS])
def test_work_that_dies_there_is_done_again(point: str, tmp_path: Path) -> None:
    noun = point.partition("_")[0]
    bucket = Bucket(tmp_path, _LONG if noun == "index" else SHAPE)
    words = COMMANDS[noun]
    if noun == "object":
        assert bucket.run(COMMANDS["layer"]) == 0
    assert bucket.run(words, point) == -signal.SIGKILL
    bucket.check()
    assert bucket.run(words) == 0
    bucket.check()
    tried("kills at failpoints", 1)
