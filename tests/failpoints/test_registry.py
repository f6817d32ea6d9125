"""There are enough failpoints, each has a name of its own, and each is swept."""

from __future__ import annotations

import re

from tests.failpoints import (
    test_host_points,
    test_journal_points,
    test_restore_points,
    test_tap_points,
)
from tests.failpoints.registry import failpoints, swept_elsewhere

POINTS_MIN = 60
#: Whose failpoints are all swept.
PROGRAMS = ("tap", "agent", "ingest", "store", "journal", "restore")
_NAME = re.compile(r"[a-z]+(_[a-z]+)*_after_[a-z_]+_before_[a-z_]+")


def _places() -> list[tuple[str, str]]:
    return [(place, name) for place, names in failpoints().items() for name in sorted(names)]


def test_there_are_enough() -> None:
    assert len(_places()) >= POINTS_MIN


def test_names_say_between_which_steps() -> None:
    assert [name for _, name in _places() if not _NAME.fullmatch(name)] == []


def test_each_is_swept() -> None:
    """By the sweeps here, all of a program's; the others by name, where they are tested."""
    swept = {
        *test_tap_points.POINTS,
        *test_restore_points.POINTS,
        *test_journal_points.POINTS,
        *test_host_points.POINTS["agent"],
        *test_host_points.POINTS["ingest"],
    }
    assert len(swept) >= POINTS_MIN
    left = set().union(*(failpoints()[place] for place in PROGRAMS)) - swept
    assert left <= swept_elsewhere()
