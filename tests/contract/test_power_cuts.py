"""The power goes while a journal is written to a local folder: what was acknowledged is restored
byte for byte, and no name holds half an object."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.journal.rewriting import Position, Story, judge, write_on
from tests.lanes import pick, tried
from tests.model.volatile import Recorder, Step, cut_power
from workers.storage import local
from workers.storage.local import LocalStore

pytestmark = pytest.mark.invariant("I2", "I3", "I10")

#: Power cuts of every run of `make test`: at least so many.
STATES_MIN = pick(200, 1_000, 10_000)


@dataclass
class Written:
    """A story that was written into a folder: its steps, and after how many of them each position
    was acknowledged."""

    story: Story
    steps: list[Step]
    acknowledged: list[tuple[int, Position]]

    def newest(self, steps: int) -> Position:
        """What had been acknowledged after so many steps."""
        return max((one for at, one in self.acknowledged if at <= steps), default=(-1, 0))


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: thousands of small files are made and removed."""
    with tempfile.TemporaryDirectory(prefix="holdfast-cuts-", dir="/dev/shm") as made:
        yield Path(made)


def _write(folder: Path, seed: int) -> Written:
    story, root = Story.make(seed), folder / f"written{seed}"
    recorder = Recorder(root)
    written = Written(story, recorder.steps, [])
    with recorder.watching():
        store = LocalStore(root)
        store.clean_up()

        def acknowledge(position: Position) -> None:
            written.acknowledged.append((len(recorder.steps), position))

        write_on(story, store, random.Random(seed), acknowledge)
    return written


def _check(written: Written, steps: int, folder: Path, how: int) -> None:
    """Cut the power after so many steps, in one of several ways."""
    rng = random.Random(steps * 8 + how) if how > 1 else None
    after = folder / "after"
    cut_power(written.steps[:steps], after, rng, everything=how == 1)
    try:
        store = LocalStore(after)
        judge(written.story, store, written.newest(steps))
        assert list((after / ".unfinished").iterdir()) == []
    finally:
        shutil.rmtree(after)


def _sweep(folder: Path, seed: int, ways: int) -> int:
    written = _write(folder, seed)
    states = 0
    for steps in range(len(written.steps) + 1):
        for how in range(ways):
            _check(written, steps, folder, how)
            states += 1
    return states


@pytest.mark.timeout(0)
def test_what_was_acknowledged_survives_every_power_cut(folder: Path) -> None:
    """After every step: with nothing, all, and random parts of what no sync covers."""
    states, seed = 0, 1
    while states < STATES_MIN:
        seed += 1
        states += _sweep(folder, seed, ways=3)
    tried("power-cut states", states)
    assert states >= STATES_MIN


def test_an_object_that_exists_is_durable_before_it_is_told(folder: Path) -> None:
    """A creator died after its link and before its sync; the next is told "exists", and may build
    on it: so it is there for good."""
    root = folder / "store"
    recorder = Recorder(root)
    with recorder.watching():
        first = LocalStore(root)
        first.put_if_absent("t/first", b"1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "_sync_directory", lambda path: None)
            first.put_if_absent("t/second", b"2" * 1000)
        LocalStore(root).put_if_absent("t/second", b"2" * 1000)
    cut_power(recorder.steps, folder / "after", None, everything=False)
    assert LocalStore(folder / "after").get("t/second") == b"2" * 1000


@pytest.mark.parametrize("forgotten", ["sync", "tidy"])
def test_control_a_store_that_forgets_a_sync_is_noticed(folder: Path, forgotten: str) -> None:
    """Without the syncs of files, or without those of folders, something that was acknowledged is
    not there."""
    written = _write(folder, 2)
    written.steps = [step for step in written.steps if step.kind != forgotten]
    written.acknowledged = [(len(written.steps), written.acknowledged[-1][1])]
    with pytest.raises(Exception) as caught:
        _check(written, len(written.steps), folder, 0)
    assert isinstance(caught.value, AssertionError | FileNotFoundError)
