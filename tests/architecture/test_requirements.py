"""Every requirement of the service's security is held by tests that there are."""

from __future__ import annotations

import pytest

from tests.invariants.__main__ import all_tests
from tests.invariants.requirements import REQUIREMENTS, Requirement

_IDS = {f"CP{n}" for n in range(1, 15)} | {f"EN{n}" for n in range(1, 11)}
_IDS |= {f"IN{n}" for n in range(1, 7)} | {"B1"} | {f"C{n}" for n in range(1, 6)}
TESTS = frozenset(named.test for named in all_tests())


def wrong(requirements: dict[str, Requirement], tests: frozenset[str]) -> list[str]:
    """Requirements without a test or a word on what is missing, and tests that there are not."""
    found = [name for name, one in requirements.items() if not one.tests and not one.later]
    found += [test for one in requirements.values() for test in one.tests if test not in tests]
    return found


def test_each_requirement_has_an_entry() -> None:
    assert set(REQUIREMENTS) >= _IDS


def test_each_is_held_by_tests_that_there_are() -> None:
    assert wrong(REQUIREMENTS, TESTS) == []


@pytest.mark.parametrize("name", ["CP1", "EN7", "IN5"])
def test_control_a_test_that_went_is_missed(name: str) -> None:
    gone = REQUIREMENTS[name].tests[0]
    assert set(wrong(REQUIREMENTS, TESTS - {gone})) == {gone}


def test_control_a_requirement_without_a_test_is_seen() -> None:
    assert wrong({"CP1": Requirement("x", ())}, TESTS) == ["CP1"]
