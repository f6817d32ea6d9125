"""Storms by seed. The short ones are part of every run; `soak` runs many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lanes import pick
from tests.model.model import (
    FLUSH,
    SYNC,
    SYNC_ZERO,
    TRIM,
    WRITE,
    ZERO,
    Event,
    Model,
)
from tests.tap.conftest import DISKS, StartTap
from tests.tap.daemon import MEMORY, folder_in
from tests.tap.opened import close_all
from tests.tap.storm import Storm

ENGINES = ["threads", "io_uring"]


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with folder_in(Path(request.param)) as made:
        yield made


def rage(start_tap: StartTap, folder: Path, engine: str, seed: int, stretches: int = 4) -> None:
    """One storm from beginning to end."""
    storm = Storm(start_tap(f"t{seed}", engine=engine), folder, random.Random(seed))
    for _ in range(stretches):
        storm.run(60)
        storm.check()
    storm.tap.stop()
    close_all()


@pytest.mark.invariant("I1", "I3", "I4")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("folder", [MEMORY, DISKS], indirect=True, ids=["memory", "storage"])
@pytest.mark.parametrize("seed", [1, 2])
def test_storm(start_tap: StartTap, folder: Path, engine: str, seed: int) -> None:
    rage(start_tap, folder, engine, seed)


#: Hundreds of storms of each kind.
_STORMS = pick(20, 1, 20)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("folder", [MEMORY, DISKS], indirect=True, ids=["memory", "storage"])
@pytest.mark.parametrize("first", range(100, 100 + 100 * _STORMS, 100))
def test_long_storm(start_tap: StartTap, folder: Path, engine: str, first: int) -> None:
    for seed in range(first, first + 100):
        rage(start_tap, folder, engine, seed)


def _lost_write(event: Event, seq: int) -> Event | None:
    return None if event.op == WRITE and seq % 20 == 0 else event


def _lost_trim(event: Event, seq: int) -> Event | None:
    return None if event.op == TRIM else event


def _short_zero(event: Event, seq: int) -> Event | None:
    short = event.op == ZERO and event.length > 512
    return replace(event, length=event.length & 0x1FF or 512) if short else event


def _refused_taken_as_done(event: Event, seq: int) -> Event | None:
    return None if event.op in (SYNC, SYNC_ZERO) and seq > 40 else event


def _shifted(event: Event, seq: int) -> Event | None:
    return (
        replace(event, offset=event.offset + 512) if event.op == WRITE and seq % 9 == 0 else event
    )


PLANTED = [_lost_write, _lost_trim, _short_zero, _refused_taken_as_done, _shifted]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__[1:])
def test_control_a_storm_notices(
    start_tap: StartTap,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    planted: Callable[[Event, int], Event | None],
) -> None:
    """Were the tap's records wrong in this way, the storm would say so."""
    apply = Model.apply

    def wrong(model: Model, event: Event) -> int:
        changed = planted(event, model.seq + 1)
        return apply(model, changed or Event(FLUSH, event.disk))

    monkeypatch.setattr(Model, "apply", wrong)
    with pytest.raises(AssertionError):
        for seed in range(1, 9):
            rage(start_tap, memory, "threads", seed)
