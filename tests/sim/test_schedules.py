"""Two thousand schedules of faults, and that a seed is a schedule."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.lanes import pick, tried
from tests.sim.broken import DEFECTS, resume_unseen
from tests.sim.options import FAULTS, draw
from tests.sim.report import (
    Broken,
    Report,
    Way,
    cores,
    regressions,
    run_options,
    run_seeds,
    show,
)
from tests.sim.run import environment, run_one

BLOCK = 250
SCHEDULES = 2_000
LONG_BLOCK = 4_000
LONG_SCHEDULES = pick(10_000, 10_000, 102_000)

#: What every block must have reached: a simulator that never gets there shows nothing.
REACHED = (
    *(f"fault_{kind}" for kind in FAULTS),
    "boundary",
    "cause_forced",
    "cause_journal_differs",
    "cause_ring_lost",
    "cause_unclean_stop",
    "close_replaced",
    "collected",
    "damage_named",
    "fell_disk_error",
    "fell_ring_full",
    "folded",
    "given_up",
    "hash_list_made",
    "in_flight_at_kill",
    "index_made",
    "late_create",
    "lost_answer",
    "operator_resync",
    "spooled",
    "stale_list",
    "sync_ended",
    "tap_clean_start",
    "worker_killed",
)
#: And these every long block.
RARE = (
    "close_fenced",
    "close_generation_ended",
    "found_the_same",
    "resent",
    "sync_read_in_vain",
)


def _explain(report: Report) -> str:
    return "\n".join(
        f"python -m tests.sim replay {one.options.seed} --trace: {one.message}"
        for one in report.failures
    )


@pytest.mark.invariant("I2", "I3", "I4", "I7", "I10", "I11", "I12", "I14", "I15", "I16")
def test_schedules_that_failed_once() -> None:
    report = run_options(regressions())
    assert report.is_good, _explain(report)


@pytest.mark.invariant("I1", "I2", "I3", "I4", "I7", "I10", "I11", "I12", "I14", "I15", "I16")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
def test_every_schedule_keeps_the_invariants(first: int) -> None:
    report = run_seeds(range(first, first + BLOCK))
    tried("simulated fault schedules", report.schedules)
    assert report.is_good, _explain(report)
    assert [what for what in REACHED if not report.reached[what]] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_planted_defects_are_found(defect: Broken) -> None:
    """Negative control: the same schedules must fail when a mechanism is broken."""
    wanted = [draw(seed) for seed in range(200)]
    if defect is resume_unseen:  # only a copied host can show it: save the time of the others
        wanted = [one for one in wanted if any(f.kind == "clone_live" for f in one.faults)]
    report = run_options(wanted, defect, Way(failures_max=1))
    assert not report.is_good, f"{defect.__name__} was not found in {report.schedules} schedules"


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.invariant("I1", "I2", "I3", "I4", "I7", "I10", "I11", "I12", "I14", "I15", "I16")
@pytest.mark.parametrize("first", range(SCHEDULES, LONG_SCHEDULES, LONG_BLOCK))
def test_a_long_night_of_schedules(first: int) -> None:
    way = Way(procs=cores(), shrinks=True)
    report = run_seeds(range(first, first + LONG_BLOCK), way=way)
    print("\n".join(show(report)))
    tried("simulated fault schedules", report.schedules)
    assert report.is_good, _explain(report)
    assert [what for what in (*REACHED, *RARE) if not report.reached[what]] == []


def _digest(hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.sim", "replay"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    made = ""
    for seed in ("16", "17"):
        ran = subprocess.run(
            [*command, seed], env=environment, capture_output=True, text=True, check=True
        )
        made += next(line for line in ran.stdout.splitlines() if line.startswith("digest"))
    return made


def test_a_seed_repeats_itself() -> None:
    assert _digest("1") == _digest("2")


@pytest.mark.parametrize("seed", [4, 16, 17])
def test_a_seed_repeats_itself_whatever_ran_before(seed: int) -> None:
    """Nothing may follow from where an object lies in memory, as a set's order does."""
    digests = set()
    for _ in range(5):
        with environment() as keys:
            digests.add(run_one(draw(seed), keys).digest)
    assert len(digests) == 1
