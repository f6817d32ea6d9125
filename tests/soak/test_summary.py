"""The summary says what the reports say, and a failure cannot hide in it."""

from __future__ import annotations

from collections import Counter

from tests.invariants.listing import Named
from tests.soak.__main__ import counted_files
from tests.soak.summary import Ran, Run, Step, read_report, render

REPORT = """<testsuites><testsuite>
<testcase classname="tests.wire.test_seal" name="test_a[1-x]" time="1.5"/>
<testcase classname="tests.ingest.test_parts.TestGate" name="test_b@service" time="2">
<failure message="no"/></testcase>
<testcase classname="tests.wire.test_seal" name="test_c" time="0"><skipped/></testcase>
</testsuite></testsuites>"""
NAMED = [
    Named("tests/wire/test_seal.py::test_a", ("I2", "I10")),
    Named("tests/ingest/test_parts.py::TestGate::test_b", ("I7",)),
]


def _run(*, is_good: bool) -> Run:
    run = Run("ci", "abc1234", "2026-01-01", tests=read_report(REPORT))
    run.tally = Counter({"power-cut states": 1234})
    run.steps.append(Step("counted tests", 3.5, is_good, "3 tests, 1 failed"))
    return run


def test_a_report_is_read() -> None:
    assert read_report(REPORT) == [
        Ran("tests/wire/test_seal.py::test_a", "test_a[1-x]", 1.5, "passed"),
        Ran("tests/ingest/test_parts.py::TestGate::test_b", "test_b@service", 2.0, "failed"),
        Ran("tests/wire/test_seal.py::test_c", "test_c", 0.0, "skipped"),
    ]


def test_every_invariant_has_its_line() -> None:
    text = render(_run(is_good=True), NAMED)
    assert "| I2: no acknowledged loss: what is stored is in every later restore | 1 | 1 |" in text
    assert "| I7: single writer: a fenced writer's bytes never appear | 1 | 0 | 1 |" in text
    assert "| power-cut states | 1,234 |" in text
    assert text.count("\n| I") == 17  # with the heading


def test_a_failure_is_named() -> None:
    text = render(_run(is_good=False), NAMED)
    assert "Something did not hold" in text
    assert "**badly**" in text
    assert "- `tests/ingest/test_parts.py::TestGate::test_b`: test_b" in text
    assert "Everything held" in render(_run(is_good=True), NAMED)


def test_a_part_that_was_not_run_is_named() -> None:
    run = _run(is_good=True)
    run.planned = ("counted tests", "simulator")
    text = render(run, NAMED)
    assert "| simulator | **not run** |" in text
    assert "Something did not hold" in text


def test_the_counted_tests_are_found() -> None:
    found = counted_files()
    assert "tests/journal/test_crash_points.py" in found
    assert "tests/contract/test_power_cuts.py" in found
    assert len(found) > 6
