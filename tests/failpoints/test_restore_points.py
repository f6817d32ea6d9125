"""A restore dies at each of its failpoints. What is left bears no image's name unless it is the
whole and verified image, and the next restore gives what the model says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.demo.processes import tool
from tests.failpoints.registry import failpoints
from tests.integration.nbd import NbdClient
from tests.lanes import pick, tried
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from workers.storage.url import open_store

_SECONDS = 60.0
ROUNDS = pick(1, 2, 10)
POINTS = sorted(failpoints()["restore"])

pytestmark = pytest.mark.invariant("I3", "I10")


class Bucket:
    """A journal in a folder, its key, and what its disks hold at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = f"file://{folder / 'store'}"
        rng = random.Random(9)
        builder = JournalBuilder(open_store(url, create=True), rng=rng)
        Workload(builder, Shape({"root": 64, "data": 40}), rng).run()
        self.images = builder.model.images()
        key = folder / "tenant.key"
        key.touch(0o600)
        key.write_bytes(builder.tenant_key.dump())
        self.words = ["--store", url, "--tenant", "acme", "--key-file", str(key), "--json"]
        self.words += ["--group", "web", "--at", "latest-write"]

    def start(self, verb: str, *words: str | Path, point: str = "") -> subprocess.Popen[str]:
        """`holdfast restore VERB`, which ends at a failpoint."""
        return subprocess.Popen(
            [tool("holdfast"), "restore", verb, *self.words, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HOLDFAST_FAILPOINT": point},
        )


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with tempfile.TemporaryDirectory(prefix="hf-restore-") as folder:
        yield Bucket(Path(folder))


def _images(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.rglob("*.raw")}


def _export(bucket: Bucket, point: str) -> None:
    """Dies; leaves only whole images under their names; then everything is made."""
    output = bucket.folder / "exported"
    try:
        dying = bucket.start("export", "--output", output, point=point)
        _, said = dying.communicate(timeout=_SECONDS)
        assert dying.returncode == -signal.SIGKILL, said
        left = _images(output)
        assert left.items() <= bucket.images.items()
        again = bucket.start("export", "--output", output, "--force")
        told, said = again.communicate(timeout=_SECONDS)
        assert again.returncode == 0, said
        assert json.loads(told)["verified"] is True
        assert _images(output) == bucket.images
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _serve(bucket: Bucket, point: str) -> None:
    """Dies; the next one, in another folder, serves every disk."""
    dying = bucket.start("serve", "--socket-dir", bucket.folder / "s0", point=point)
    _, said = dying.communicate(timeout=_SECONDS)
    assert dying.returncode == -signal.SIGKILL, said
    shutil.rmtree(bucket.folder / "s0", ignore_errors=True)
    serving = bucket.start("serve", "--socket-dir", bucket.folder / "s1")
    try:
        assert serving.stdout is not None
        disks = json.loads(serving.stdout.readline())["disks"]
        found = {}
        for disk in disks:
            with NbdClient(disk["uri"]) as client:
                found[disk["name"]] = client.read(0, client.size)
        assert found == bucket.images
    finally:
        serving.terminate()
        serving.communicate(timeout=_SECONDS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", POINTS)
def test_a_restore_that_dies_there_leaves_no_half_image(bucket: Bucket, point: str) -> None:
    once = "_piece_" not in point and "_named_" not in point
    for number in range(1 if once else ROUNDS):
        (_serve if point.startswith("serve") else _export)(bucket, f"{point}:{number + 1}")
        tried("kills at failpoints", 1)
