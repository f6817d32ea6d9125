"""Run the long lanes and write `tests/soak/SUMMARY.md`; ends 0 only if every part ended well.

`LANE=ci` (default) takes about an hour, `LANE=nightly` several; `LANE=test` tries as much as
`make test` does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.architecture import sources
from tests.invariants.__main__ import all_tests
from tests.lanes import LANES
from tests.soak.summary import Run, Step, read_report, render

#: Hours of a database while things fail; alone on the machine, and telling how far it is.
_DATABASE = "tests/integration/test_database_under_faults.py"
_SUMMARY = sources.ROOT / "tests/soak/SUMMARY.md"


def counted_files() -> list[str]:
    """The test files whose counts depend on the lane."""
    return [
        str(path)
        for path in sources.with_suffix(".py")
        if path.parts[0] == "tests"
        and path.name.startswith("test_")
        and "from tests.lanes import" in sources.text_of(path)
        and str(path) != _DATABASE
    ]


class Soak:
    """One run, part by part."""

    def __init__(self, lane: str, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._jobs = str(jobs)
        self._tally = folder / "tally"
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True)
        self.run = Run(lane, commit.strip(), datetime.now(UTC).strftime("%Y-%m-%d"))
        self._environment = {**os.environ, "LANE": lane, "HOLDFAST_TALLY": str(self._tally)}

    def part(self, name: str, work: Callable[[], tuple[bool, str]]) -> None:
        """Do one part and keep what it says."""
        print(f"== {name}", flush=True)
        began = time.monotonic()
        is_good, said = work()
        step = Step(name, time.monotonic() - began, is_good, said)
        self.run.steps.append(step)
        self._count()
        print(f"   {'well' if is_good else 'BADLY'} in {step.seconds:.0f} s: {said}", flush=True)

    def _call(self, *words: str) -> int:
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, cwd=sources.ROOT, env=self._environment, check=False
        ).returncode

    def pytest(self, name: str, *words: str) -> tuple[bool, str]:
        """Tests; their report goes into the summary."""
        report = self._folder / f"{name}.xml"
        code = self._call(
            "pytest", "-q", "--timeout=0", "-p", "no:cacheprovider", f"--junitxml={report}",
            "-n", self._jobs, "--dist", "loadgroup", *words,
        )  # fmt: skip
        ran = read_report(report.read_text()) if report.exists() else []
        self.run.tests += ran
        failed = sum(one.outcome == "failed" for one in ran)
        return code in (0, 5), f"{len(ran)} tests, {failed} failed"

    def plant(self) -> tuple[bool, str]:
        """The planted bugs."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.planted", "--json", "--jobs", self._jobs],
            cwd=sources.ROOT, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        try:
            said = json.loads(done.stdout)
        except ValueError:
            return False, "it did not run to its end"
        self.run.tally["planted bugs"] += int(said["planted"])
        missed = [one["bug"] for one in said["bugs"] if not one["caught"]]
        return done.returncode == 0, f"{said['caught']} caught; missed: {missed or 'none'}"

    def _count(self) -> None:
        """Add what the tests said that they tried."""
        if self._tally.exists():
            for line in self._tally.read_text().splitlines():
                told = json.loads(line)
                self.run.tally[told["what"]] += int(told["count"])
            self._tally.unlink()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="test processes (default: 2)")
    parser.add_argument("--output", type=Path, default=_SUMMARY, help="where the summary goes")
    parser.add_argument("--only", metavar="PART", help="this part alone, by its name")
    wanted = parser.parse_args()
    lane = os.environ.get("LANE") or "ci"
    if lane not in LANES:
        parser.error(f"LANE={lane}: use one of {', '.join(LANES)}")
    with tempfile.TemporaryDirectory(prefix="holdfast-soak-") as folder:
        soak = Soak(lane, Path(folder), wanted.jobs)
        # Those that run nowhere else first: whoever waits for an hour hears early what is broken.
        parts: dict[str, Callable[[], tuple[bool, str]]] = {
            "long tests": lambda: soak.pytest("long", "-m", "soak and not alone"),
            "long tests alone": lambda: soak.pytest("alone", "-n", "0", "-m", "soak and alone"),
            "counted tests": lambda: soak.pytest("counted", "-m", "not soak", *counted_files()),
            "planted bugs": soak.plant,
            "database": lambda: soak.pytest("database", "-n", "0", "-s", _DATABASE),
        }
        if wanted.only:
            if wanted.only not in parts:
                parser.error(f"--only: use one of {', '.join(parts)}")
            parts = {wanted.only: parts[wanted.only]}
        soak.run.planned = tuple(parts)
        for name, work in parts.items():
            soak.part(name, work)
            # After each: hours must not be lost to whatever ends the rest.
            wanted.output.write_text(render(soak.run, all_tests()))
    print(f"The summary is in {wanted.output}.")
    return 0 if soak.run.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
