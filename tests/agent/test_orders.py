"""Commands once and in order, over any end of the agent; answers until they are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from host_agent.control.errors import EpochStale, StateUnusable
from host_agent.control.orders import ANSWERS_MAX, Orders
from host_agent.stream.ports import Result
from host_agent.wire.control import Answer
from tests.stream.harness import in_loop


async def at_once(function: object) -> Result:
    """In this thread."""
    result: Result = function()  # type: ignore[operator]
    return result


def orders(folder: Path) -> Orders:
    return Orders(folder / "orders.json", at_once)


@in_loop
async def test_only_what_is_above_is_taken_also_after_a_restart(tmp_path: Path) -> None:
    first = orders(tmp_path)
    assert first.highest == (0, 0)
    for place in ((1, 1), (1, 2), (3, 1), (3, 9)):
        await first.take(*place)
    for again in (first, orders(tmp_path)):
        for stale in ((3, 9), (3, 8), (2, 100), (0, 0), (1, 2)):
            with pytest.raises(EpochStale):
                await again.take(*stale)
        assert again.highest == (3, 9)
    await orders(tmp_path).take(4, 0)


@in_loop
async def test_what_was_begun_and_not_answered_is_said_to_be_interrupted(tmp_path: Path) -> None:
    first = orders(tmp_path)
    await first.take(1, 1)
    await first.take(1, 2)
    await first.finish(Answer(1, 1, "done", {"a": 1}))
    again = orders(tmp_path)
    done, cut = again.waiting
    assert done == Answer(1, 1, "done", {"a": 1})
    assert (cut.number, cut.outcome) == (2, "failed")
    assert cut.error is not None
    assert (cut.error.code, cut.error.retryable) == ("interrupted", True)
    again.taken(1, 1)
    again.taken(7, 7)
    await again.take(1, 3)
    assert [one.number for one in orders(tmp_path).waiting] == [2, 3]


@in_loop
async def test_answers_are_bounded(tmp_path: Path) -> None:
    first = orders(tmp_path)
    for number in range(1, ANSWERS_MAX + 11):
        await first.take(1, number)
        await first.finish(Answer(1, number, "done"))
    numbers = [one.number for one in orders(tmp_path).waiting]
    assert numbers == list(range(11, ANSWERS_MAX + 11))


@in_loop
async def test_a_number_that_cannot_be_kept_is_not_obeyed(tmp_path: Path) -> None:
    inside = tmp_path / "gone"
    inside.mkdir()
    first = orders(inside)
    inside.rmdir()
    with pytest.raises(StateUnusable):
        await first.take(1, 1)


def test_a_damaged_file_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """From zero, a manager that was replaced long ago would be obeyed."""
    (tmp_path / "orders.json").write_bytes(b'{"epoch": 5, "numb')
    with pytest.raises(StateUnusable):
        orders(tmp_path)
