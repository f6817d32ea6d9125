"""A measured case, and how it is told."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from tests.bench.processes import BenchFailed

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Case:
    """One figure of ours beside a peer's, or beside a limit that is a number of its own.

    `goal` is what the ratio ours / peer must reach (`better` is higher) or keep to (lower);
    None publishes the figure without judging it.
    """

    bench: str
    case: str
    unit: str
    ours: float
    peer_name: str
    peer: float
    goal: float | None = None
    better: Better = "higher"
    note: str = ""

    @property
    def ratio(self) -> float:
        """ours / peer. A peer of zero allows nothing: 0 if ours is zero too, else infinite."""
        if self.peer:
            return self.ours / self.peer
        return float("inf") if self.ours else 0.0

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """The object that is printed, rounded to what the measurement can tell."""
        ratio = self.ratio
        return {
            "bench": self.bench,
            "case": self.case,
            "unit": self.unit,
            "ours": significant(self.ours),
            "peer_name": self.peer_name,
            "peer": significant(self.peer),
            "ratio": None if ratio == float("inf") else significant(ratio),
            "goal": self.goal,
            "better": self.better,
            "met": self.met,
            "note": self.note,
        }


def significant(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def tell(cases: Iterable[Case], out: TextIO | None = None) -> list[Case]:
    """Print each case as soon as it is measured; all of them when done."""
    told = []
    for case in cases:
        print(json.dumps(case.as_dict()), file=out or sys.stdout, flush=True)
        told.append(case)
    return told


def end_in_order() -> None:
    """At SIGTERM leave every block, so that no server stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(cases: Iterable[Case]) -> int:
    """A benchmark by itself: ends 0 when all was measured, whatever the figures say, else 2."""
    end_in_order()
    try:
        tell(cases)
    except BenchFailed as error:
        print(f"This could not be measured: {error}", file=sys.stderr)
        return 2
    return 0
