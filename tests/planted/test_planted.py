"""The catalogue fits the sources and the tests, and planting works: three bugs are planted here,
all of them by `make planted`."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.architecture import sources
from tests.invariants.listing import INVARIANTS
from tests.planted.bug import BadBug, Bug, Edit, Planted
from tests.planted.catalogue import BUGS
from tests.planted.runner import Outcome, plant_all

BUGS_MIN = 60
QUICK = (
    "an acknowledgement of an older epoch counts",
    "a gap is accepted",
    "the hash of the segment before is not compared",
)


def test_each_bug_fits_the_sources() -> None:
    complaints = []
    for bug in BUGS:
        for edit in bug.edits:
            try:
                text = edit.check(sources.ROOT)
            except (BadBug, OSError) as error:
                complaints.append(f"{bug.name}: {error}")
                continue
            if edit.path.endswith(".py"):
                ast.parse(text.replace(edit.old, edit.new))
    assert not complaints, "\n" + "\n".join(complaints)


def _defined(tree: ast.AST, names: list[str]) -> bool:
    if not names:
        return True
    for node in ast.iter_child_nodes(tree):
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_definition and node.name == names[0]:  # type: ignore[attr-defined]
            return _defined(node, names[1:])
    return False


def test_each_bug_names_tests_that_exist() -> None:
    missing = []
    for bug in BUGS:
        for test in bug.tests:
            path, *names = test.split("::")
            file = sources.ROOT / path
            if not file.exists() or not _defined(ast.parse(file.read_text()), names):
                missing.append(f"{bug.name}: {test}")
    assert not missing, "\n" + "\n".join(missing)


def test_the_catalogue_is_whole() -> None:
    assert len(BUGS) >= BUGS_MIN
    assert [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1] == []
    assert all(bug.invariant in INVARIANTS and bug.tests for bug in BUGS)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_three_bugs_are_caught() -> None:
    chosen = [bug for bug in BUGS if bug.name in QUICK]
    assert len(chosen) == len(QUICK)
    outcomes = plant_all(chosen, 1)
    assert [one.bug.name for one in outcomes if not one.is_caught] == [], outcomes


def _harmless(new: str, tests: str) -> Bug:
    path = "workers/ingest/gate.py"
    old = "        if header.first_seq == self._next_seq:\n"
    return Bug("harmless", "I4", (Edit(path, old, new),), (tests,))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_control_what_breaks_nothing_or_everything_is_not_caught() -> None:
    """A bug that no test sees, and one after which the tests cannot even be collected."""
    tests = "tests/ingest/test_parts.py::TestGate"
    unseen = _harmless("        if self._next_seq == header.first_seq:\n", tests)
    broken = _harmless("        if header.first_seq == = self._next_seq:\n", tests)
    one, other = plant_all([unseen, broken], 1)
    assert isinstance(one, Outcome)
    assert (one.is_caught, one.trouble) == (False, "")
    assert not other.is_caught
    assert other.trouble


def test_a_text_that_occurs_twice_is_not_planted() -> None:
    bug = BUGS[0]
    before = {edit.path: (sources.ROOT / edit.path).read_text() for edit in bug.edits}
    with pytest.raises(BadBug), Planted(sources.ROOT, _harmless_twice()):
        raise AssertionError("a text that occurs twice was planted")
    assert before == {edit.path: (sources.ROOT / edit.path).read_text() for edit in bug.edits}


def _harmless_twice() -> Bug:
    return Bug("twice", "I4", (Edit("workers/ingest/gate.py", "self", "self"),), ("tests",))
