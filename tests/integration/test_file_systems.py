"""ext4 with SQLite on it, cut at random checkpoints: always sound, never a commit too few."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from infra.demo.machine import Source, can_mount
from infra.demo.mount import Mount
from infra.demo.processes import program, run
from infra.demo.report import DemoFailed
from tests.integration.place import Place

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(can_mount() is not None, reason=f"cannot mount: {can_mount()}"),
]
_CHECKPOINTS = 6


class Committer:
    """Commits numbered rows, each durable before the next; `last` is the newest acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._done: Future[None] = Future()
        self.last = 0

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._work, daemon=True).start()

    def end(self) -> None:
        """Stop after the next commit; the error, if it met one."""
        self._ended.set()
        self._done.result(30)

    def _work(self) -> None:
        try:
            self._run()
        except (sqlite3.Error, OSError) as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def _run(self) -> None:
        rng = random.Random(5)
        base = sqlite3.connect(self._path, isolation_level=None)
        base.execute("pragma journal_mode=wal")
        base.execute("pragma synchronous=full")
        base.execute("create table ledger (n integer primary key, body blob, sum text)")
        base.execute("create index by_sum on ledger (sum)")
        number = 0
        while not self._ended.is_set():
            number += 1
            body = rng.randbytes(rng.randrange(10, 3000))
            base.execute("begin")
            base.execute("insert into ledger values (?, ?, ?)", (number, body, body[:8].hex()))
            base.execute("commit")
            self.last = number
            time.sleep(0.002)
        base.close()


def ledger_of(image: Path, place: Place, name: str) -> int:
    """The newest row of the image's ledger; DemoFailed unless all is sound up to there."""
    fsck = program("e2fsck")
    run([fsck, "-p", image], allowed=(0, 1))
    run([fsck, "-f", "-n", image])
    mount = Mount(place.processes, place.folder / name)
    try:
        root = mount.enter(Source(file=image))
        base = sqlite3.connect(root / "ledger.db")
        try:
            if base.execute("pragma integrity_check").fetchall() != [("ok",)]:
                raise DemoFailed("integrity_check")
            rows = base.execute("select n, body, sum from ledger order by n").fetchall()
        except sqlite3.Error as error:
            raise DemoFailed(str(error)) from None
        finally:
            base.close()
    finally:
        mount.leave()
        shutil.rmtree(place.folder / name)
    if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
        raise DemoFailed("rows are missing")
    if any(body[:8].hex() != total for _, body, total in rows):
        raise DemoFailed("a row is not what it was")
    return len(rows)


@pytest.mark.invariant("I2", "I3", "I4")
def test_every_checkpoint_holds_a_sound_file_system_and_all_commits_before_it(
    place: Place,
) -> None:
    run([program("mkfs.ext4"), "-q", place.disk])
    mount = Mount(place.processes, place.folder / "mount")
    rng = random.Random(3)
    cuts: list[tuple[str, int, int]] = []
    try:
        root = mount.enter(Source(uri=place.protect()))
        committer = Committer(root / "ledger.db")
        committer.start()
        for number in range(_CHECKPOINTS):
            time.sleep(rng.uniform(0.1, 1.2))
            before = committer.last
            place.site.checkpoint(f"cut-{number}", wait=number == _CHECKPOINTS - 1)
            cuts.append((f"tag:cut-{number}", before, committer.last + 1))
        committer.end()
    finally:
        mount.leave()
    place.drain()
    place.lose()
    images: list[Path] = []
    for selector, before, after in cuts:
        image = place.folder / f"{len(images)}.raw"
        image.write_bytes(place.export(selector))
        images.append(image)
        assert before <= ledger_of(image, place, "look") <= after, selector
    assert cuts[-1][1] > 20
    _control_a_mixture_of_two_moments_is_noticed(place, images, cuts[-1][1])


def _control_a_mixture_of_two_moments_is_noticed(
    place: Place, images: list[Path], at_least: int
) -> None:
    """Half of the blocks of an earlier moment: no prefix of anything, and the checks say so."""
    rng = random.Random(9)
    early, late = images[0].read_bytes(), bytearray(images[-1].read_bytes())
    for at in range(0, len(late), 4096):
        if rng.random() < 0.5:
            late[at : at + 4096] = early[at : at + 4096]
    mixed = place.folder / "mixed.raw"
    mixed.write_bytes(late)
    with pytest.raises((DemoFailed, AssertionError)):
        assert ledger_of(mixed, place, "mixed") >= at_least
