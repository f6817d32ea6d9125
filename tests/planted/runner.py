"""Plants bugs in copies of the tree and runs the tests that must find them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree as ET

from tests.architecture import sources
from tests.planted.bug import Bug, Planted

_TAP = Path("host_agent/tap")
_TAP_BINARY = _TAP / "target/release/holdfast-tap"
#: One bug's tests at most, seconds: a bug that makes a test hang is found by its limit.
_TEST_SECONDS = 60
_RUN_SECONDS = 600
#: A quick compilation: what a bug does shows without the last optimisation.
_QUICK_BUILD = [
    "--config", 'profile.release.lto="off"',
    "--config", "profile.release.codegen-units=16",
    "--config", "profile.release.incremental=true",
    "--config", "profile.release.opt-level=1",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one bug. `caught_by`: the tests that failed; empty where none did."""

    bug: Bug
    caught_by: tuple[str, ...]
    seconds: float
    trouble: str = ""

    @property
    def is_caught(self) -> bool:
        """Whether a test failed because of it, and nothing else went wrong."""
        return bool(self.caught_by) and not self.trouble


@dataclass(frozen=True)
class Verdict:
    """What a run of tests said."""

    passed: int
    failed: tuple[str, ...]
    trouble: str


class Tree:
    """A copy of the tracked files with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for path in sources.tracked():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(sources.ROOT / path, target)
        self._make_environment()
        self.use_tap(sources.ROOT / _TAP_BINARY)

    def _make_environment(self) -> None:
        """Its own `.venv`, whose programs and packages are those of the checkout."""
        real, own = sources.ROOT / ".venv", self.root / ".venv"
        (own / "bin").mkdir(parents=True)
        for name in ("lib", "pyvenv.cfg"):
            (own / name).symlink_to(real / name)
        for path in (real / "bin").iterdir():
            if path.name != "holdfast-tap":
                (own / "bin" / path.name).symlink_to(path)

    def use_tap(self, binary: Path) -> None:
        """The tap that tests start from now on."""
        for place in (self.root / ".venv/bin/holdfast-tap", self.root / _TAP_BINARY):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(binary)
        self._tap = binary

    def test(self, tests: Sequence[str], *, stop_early: bool = True, jobs: int = 0) -> Verdict:
        """Run tests of this tree."""
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        command = [
            str(self.root / ".venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider",
            f"--timeout={_TEST_SECONDS}", "--tb=line", f"--junitxml={report}", *tests,
        ]  # fmt: skip
        command += ["-x"] if stop_early else []
        command += ["-n", str(jobs), "--dist", "loadgroup"] if jobs else []
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "HOLDFAST_TAP": str(self._tap),
        }
        environment.pop("PYTEST_ADDOPTS", None)
        environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_XDIST")}
        try:
            done = subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, text=True,
                timeout=_RUN_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Verdict(0, (), f"the tests did not end within {_RUN_SECONDS} s")
        return _read(report, done.returncode, done.stdout[-2000:] + done.stderr[-2000:])


def _read(report: Path, code: int, said: str) -> Verdict:
    """A run's verdict from its report: failed tests, and what is no test's failure."""
    if code not in (0, 1) or not report.exists():
        return Verdict(0, (), f"pytest ended with {code}: {said}")
    cases = list(ET.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None]
    broken = [case for case in cases if case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    trouble = f"{_name(broken[0])} could not be run: {said}" if broken and not failed else ""
    passed = len(cases) - len(failed) - len(broken) - skipped
    return Verdict(passed, tuple(map(_name, failed)), trouble)


def _name(case: ET.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"


class Builder:
    """Compiles taps with bugs, one after another in one target folder."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._lock = threading.Lock()

    def build(self, tree: Tree) -> Path:
        """The tree's tap; CalledProcessError where it does not compile."""
        with self._lock:
            subprocess.run(
                [sources.ROOT / "infra/cargo", "build", "--quiet", "--release", "--locked",
                 "-j", "1", *_QUICK_BUILD],
                cwd=tree.root / _TAP,
                env={**os.environ, "CARGO_TARGET_DIR": str(self._target)},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            binary = tree.root / "planted-tap"
            binary.unlink(missing_ok=True)
            shutil.copy2(self._target / "release/holdfast-tap", binary)
            return binary


def plant(tree: Tree, builder: Builder, bug: Bug) -> Outcome:
    """Plant one bug, run its tests, take it out again."""
    began = time.monotonic()
    try:
        with Planted(tree.root, bug):
            if bug.is_rust:
                tree.use_tap(builder.build(tree))
            verdict = tree.test(bug.tests)
    except subprocess.CalledProcessError as error:
        return Outcome(bug, (), time.monotonic() - began, f"does not compile: {error.stderr}")
    finally:
        if bug.is_rust:
            tree.use_tap(sources.ROOT / _TAP_BINARY)
    return Outcome(bug, verdict.failed, time.monotonic() - began, verdict.trouble)


@contextmanager
def trees(count: int) -> Iterator[SimpleQueue[Tree]]:
    """So many copies of the tree, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="holdfast-planted-") as folder:
        queue: SimpleQueue[Tree] = SimpleQueue()
        for number in range(count):
            queue.put(Tree(Path(folder) / str(number)))
        yield queue


def check_unplanted(tree: Tree, bugs: Sequence[Bug], jobs: int) -> Verdict:
    """Run all tests of the bugs on the sources as they are."""
    wanted = sorted({test for bug in bugs for test in bug.tests})
    return tree.test(wanted, stop_early=False, jobs=jobs)


def plant_all(
    bugs: Sequence[Bug], jobs: int, tell: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Plant each bug in a copy of its own; in the order of `bugs`."""
    target = sources.ROOT / _TAP / "target/planted"
    builder = Builder(target)
    with trees(jobs) as free, ThreadPoolExecutor(jobs) as pool:

        def one(bug: Bug) -> Outcome:
            tree = free.get()
            try:
                outcome = plant(tree, builder, bug)
            finally:
                free.put(tree)
            tell(outcome)
            return outcome

        return list(pool.map(one, bugs))
