"""Every invariant that must hold is named by tests; `make invariants` prints which."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.invariants.__main__ import all_tests
from tests.invariants.listing import (
    LATER,
    REQUIRED,
    Named,
    by_invariant,
    missing,
    named_tests,
)

SAMPLE = """
    pytestmark = [pytest.mark.slow, pytest.mark.invariant("I10")]

    @pytest.mark.invariant("I2", "I3")
    @pytest.mark.parametrize("n", [1])
    def test_a(n): ...

    def helper(): ...

    @pytest.mark.invariant("I16")
    class TestB:
        async def test_c(self): ...
    """


def test_every_required_invariant_is_named() -> None:
    listing = by_invariant(all_tests())
    assert not missing(listing)


def test_marks_of_files_classes_and_functions_are_read() -> None:
    tree = ast.parse(textwrap.dedent(SAMPLE))
    assert list(named_tests("t.py", tree)) == [
        Named("t.py::test_a", ("I2", "I3", "I10")),
        Named("t.py::TestB::test_c", ("I10", "I16")),
    ]


def test_control_an_invariant_without_a_test_is_seen() -> None:
    tests = [named for named in all_tests() if "I7" not in named.invariants]
    assert missing(by_invariant(tests)) == ["I7"]


def test_what_is_still_to_come_is_claimed_by_no_test() -> None:
    listing = by_invariant(all_tests())
    assert not any(listing[invariant] for invariant in LATER if invariant not in REQUIRED)


def test_an_unknown_invariant_is_refused() -> None:
    tree = ast.parse('@pytest.mark.invariant("I99")\ndef test_a(): ...')
    with pytest.raises(ValueError, match="I99"):
        list(named_tests("t.py", tree))
