"""How much a test does: little in `make test`, more in `make soak`, most with `LANE=nightly`.

A test that counts what it tried asserts its count, so that no lane can shrink unnoticed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

LANES = ("test", "ci", "nightly")


def lane() -> str:
    """The lane of this run; ValueError for one that does not exist."""
    chosen = os.environ.get("LANE") or "test"
    if chosen not in LANES:
        raise ValueError(f"LANE={chosen} is none of {', '.join(LANES)}")
    return chosen


def pick(test: int, ci: int, nightly: int) -> int:
    """The number for this run's lane."""
    return {"test": test, "ci": ci, "nightly": nightly}[lane()]


def tried(what: str, count: int) -> None:
    """Tell the summary of `make soak` how much of something was tried."""
    path = os.environ.get("HOLDFAST_TALLY")
    if path:
        with Path(path).open("a", encoding="utf-8") as tally:
            tally.write(json.dumps({"what": what, "count": count}) + "\n")
