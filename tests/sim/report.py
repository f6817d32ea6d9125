"""Many schedules, what they reached, and those that failed, made small."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.sim.options import Options, draw, shrunk
from tests.sim.run import Outcome, environment, run_one

SEEDS = Path(__file__).parent / "seeds"
Broken = Callable[[], AbstractContextManager[object]]
_COLLECT_EVERY = 25
_CHUNK = 10
_SHRINK_RUNS = 80


@dataclass(frozen=True)
class Failure:
    """A schedule in which an invariant broke, and the smallest that was found to break it too."""

    options: Options
    message: str
    smallest: Options

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "seed": self.options.seed,
            "failure": self.message,
            "options": self.options.as_dict(),
            "smallest": self.smallest.as_dict(),
        }


@dataclass
class Report:
    """Of a run. `digest` is one over all schedules' own, in the order of their seeds."""

    schedules: int = 0
    failures: list[Failure] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    digest: str = ""
    cpu_seconds: float = 0.0
    simulated_seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether every invariant held in every schedule."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "schedules": self.schedules,
            "failures": [failure.as_dict() for failure in self.failures],
            "reached": dict(sorted(self.reached.items())),
            "digest": self.digest,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "simulated_seconds": round(self.simulated_seconds),
        }


@dataclass(frozen=True)
class Way:
    """How to run. `failures_max`: so many are enough; `shrinks`: make failing ones small."""

    procs: int = 1
    failures_max: int = 5
    shrinks: bool = False
    progress: Callable[[int, int], None] = lambda _done, _failed: None


def run_seeds(seeds: Iterable[int], broken: Broken | None = None, way: Way | None = None) -> Report:
    """Run the schedules of the seeds. `broken` makes a context in which the product is defective:
    a good judge then finds failures."""
    return run_options([draw(seed) for seed in seeds], broken, way)


def run_options(
    options: Iterable[Options], broken: Broken | None = None, way: Way | None = None
) -> Report:
    """The same of schedules that are at hand."""
    way = way or Way()
    report, digest = Report(), blake3()
    wanted = list(options)
    failed: list[Outcome] = []
    for outcome, seconds in _outcomes(wanted, broken, way.procs):
        report.schedules += 1
        report.reached += outcome.counters
        report.cpu_seconds += seconds
        report.simulated_seconds += outcome.seconds
        digest.update(outcome.digest.encode())
        if outcome.failure is not None:
            failed.append(outcome)
        way.progress(report.schedules, len(failed))
        if len(failed) >= way.failures_max:
            break
    for outcome in failed:
        small = shrink(outcome, broken) if way.shrinks else outcome.options
        report.failures.append(Failure(outcome.options, str(outcome.failure), small))
    report.digest = digest.hexdigest(16)
    return report


def _outcomes(
    options: list[Options], broken: Broken | None, procs: int
) -> Iterator[tuple[Outcome, float]]:
    if procs <= 1:
        yield from _run_all(options, broken)
        return
    chunks = [options[at : at + _CHUNK] for at in range(0, len(options), _CHUNK)]
    context = multiprocessing.get_context("fork")
    with context.Pool(procs, _remember, (broken,), maxtasksperchild=20) as pool:
        for found in pool.imap(_run_chunk, chunks):
            yield from found


_BROKEN: list[Broken | None] = []


def _remember(broken: Broken | None) -> None:
    _BROKEN[:] = [broken]


def _run_chunk(options: list[Options]) -> list[tuple[Outcome, float]]:
    return list(_run_all(options, _BROKEN[0]))


def _run_all(options: list[Options], broken: Broken | None) -> Iterator[tuple[Outcome, float]]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with environment() as keys, broken() if broken is not None else nullcontext():
            for number, one in enumerate(options):
                began = time.process_time()
                outcome = run_one(one, keys)
                if number % _COLLECT_EVERY == _COLLECT_EVERY - 1:
                    gc.collect()
                yield outcome, time.process_time() - began
    finally:
        if was_enabled:
            gc.enable()


def shrink(failed: Outcome, broken: Broken | None = None) -> Options:
    """The smallest schedule found that breaks the same invariant."""
    assert failed.failure is not None
    kind = failed.failure.partition(":")[2].partition(":")[0]
    best, runs = failed.options, 0
    is_smaller = True
    while is_smaller and runs < _SHRINK_RUNS:
        is_smaller = False
        for smaller in shrunk(best):
            runs += 1
            outcome = next(_run_all([smaller], broken))[0]
            if outcome.failure is not None and kind in outcome.failure:
                best, is_smaller = smaller, True
                break
            if runs >= _SHRINK_RUNS:
                break
    return best


def regressions() -> list[Options]:
    """Schedules that failed once, by their files' names."""
    paths = sorted(SEEDS.glob("*.json"))
    return [Options.of(json.loads(path.read_text())["smallest"]) for path in paths]


def save(failure: Failure) -> Path:
    """Keep a failing schedule; from then on it runs first."""
    SEEDS.mkdir(exist_ok=True)
    path = SEEDS / f"{failure.options.seed}.json"
    path.write_text(json.dumps(failure.as_dict(), indent=1) + "\n")
    return path


def show(report: Report) -> Iterator[str]:
    """A report for people, line by line."""
    yield (
        f"{report.schedules} schedules, {report.simulated_seconds / 3600:.1f} simulated hours, "
        f"{report.cpu_seconds:.0f} s of processor time, digest {report.digest}"
    )
    for name, count in sorted(report.reached.items()):
        yield f"  {name:28} {count:9}"
    for failure in report.failures:
        yield f"FAILED {json.dumps(failure.as_dict())}"
    yield "every invariant held" if report.is_good else f"{len(report.failures)} FAILED"


def cores() -> int:
    """Processors that may be used."""
    return len(os.sched_getaffinity(0))
