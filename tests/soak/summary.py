"""What a run of the long lanes showed, as a table by invariant. Nothing in it names a machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from tests.invariants.listing import INVARIANTS, Named


@dataclass(frozen=True)
class Ran:
    """One test of a report. `test` as `path::name` without parameters."""

    test: str
    case: str
    seconds: float
    outcome: str


@dataclass
class Step:
    """A part of the run: how it ended, and what it has to say in a few words."""

    name: str
    seconds: float
    is_good: bool
    said: str


@dataclass
class Run:
    """Everything that is summed up."""

    lane: str
    commit: str
    date: str
    planned: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    tests: list[Ran] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Whether every part was run and ended well."""
        ran = {step.name for step in self.steps}
        return ran >= set(self.planned) and all(step.is_good for step in self.steps)


def read_report(text: str) -> list[Ran]:
    """The tests of a JUnit report."""
    return [_ran(case) for case in ET.fromstring(text).iter("testcase")]


def _ran(case: ET.Element) -> Ran:
    module, name = case.get("classname", ""), case.get("name", "")
    outcome = "passed"
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if case.find(kind) is not None:
            outcome = word
    parts = module.split(".")
    # A class of tests is a part of its own behind the module's.
    last = max(n for n, part in enumerate(parts) if part.startswith("test_"))
    path = "/".join(parts[: last + 1]) + ".py"
    test = "::".join([path, *parts[last + 1 :], re.split(r"[\[@]", name, maxsplit=1)[0]])
    return Ran(test, name, float(case.get("time", 0)), outcome)


def render(run: Run, named: Sequence[Named]) -> str:
    """The summary as Markdown."""
    lines = [
        "# The last run of the long lanes",
        "",
        f"`make soak` with `LANE={run.lane}`, {run.date}, at commit {run.commit}.",
        f"**{'Everything held.' if run.is_good else 'Something did not hold: see below.'}**",
        "",
        "## Parts",
        "",
        "| Part | Ended | Seconds | What it says |",
        "|---|---|---:|---|",
    ]
    for step in run.steps:
        ended = "well" if step.is_good else "**badly**"
        lines.append(f"| {step.name} | {ended} | {step.seconds:.0f} | {step.said} |")
    ran = {step.name for step in run.steps}
    lines += [f"| {name} | **not run** | | |" for name in run.planned if name not in ran]
    lines += ["", "## How much was tried", "", "| What | Count |", "|---|---:|"]
    lines += [f"| {what} | {count:,} |" for what, count in sorted(run.tally.items())]
    lines += ["", "## By invariant", ""]
    lines += _by_invariant(run, {one.test: one.invariants for one in named})
    lines += _failures(run)
    return "\n".join(lines) + "\n"


def _by_invariant(run: Run, names: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [
        "| Invariant | Tests | Passed | Failed | Skipped | Seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for invariant, text in INVARIANTS.items():
        tests = [ran for ran in run.tests if invariant in names.get(ran.test, ())]
        count = Counter(ran.outcome for ran in tests)
        seconds = sum(ran.seconds for ran in tests)
        lines.append(
            f"| {invariant}: {text} | {len(tests)} | {count['passed']} | {count['failed']} "
            f"| {count['skipped']} | {seconds:.0f} |"
        )
    return lines


def _failures(run: Run) -> list[str]:
    failed = [ran for ran in run.tests if ran.outcome == "failed"]
    if not failed:
        return []
    return ["", "## Failures", "", *(f"- `{ran.test}`: {ran.case}" for ran in failed)]
