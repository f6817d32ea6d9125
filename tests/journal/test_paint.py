"""The painted map equals painting cell by cell, whatever the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.journal.paint import Painted, paint

CELLS = 40
intervals = st.lists(
    st.tuples(st.integers(0, CELLS - 1), st.integers(1, CELLS)).map(
        lambda pair: (pair[0], min(CELLS, pair[0] + pair[1]))
    ),
    max_size=40,
)


def painted(spans: list[tuple[int, int]]) -> Painted:
    start = np.array([a for a, _ in spans], np.uint64)
    end = np.array([b for _, b in spans], np.uint64)
    return paint(start, end)


def cells(result: Painted) -> list[int]:
    """The winner of each cell, -1 for none; a cell in two pieces fails."""
    out = [-1] * CELLS
    for start, end, winner in zip(
        result.start.tolist(), result.end.tolist(), result.winner.tolist(), strict=True
    ):
        assert start < end
        for cell in range(start, end):
            assert out[cell] == -1
            out[cell] = winner
    return out


def by_hand(spans: list[tuple[int, int]]) -> list[int]:
    out = [-1] * CELLS
    for rank, (start, end) in enumerate(spans):
        out[start:end] = [rank] * (end - start)
    return out


@given(intervals)
def test_equals_painting_by_hand(spans: list[tuple[int, int]]) -> None:
    assert cells(painted(spans)) == by_hand(spans)


@given(intervals)
def test_pieces_are_sorted_and_neighbours_of_one_winner_are_joined(
    spans: list[tuple[int, int]],
) -> None:
    result = painted(spans)
    starts, ends, winners = result.start.tolist(), result.end.tolist(), result.winner.tolist()
    assert starts == sorted(starts)
    for i in range(len(starts) - 1):
        assert ends[i] <= starts[i + 1]
        assert ends[i] < starts[i + 1] or winners[i] != winners[i + 1]


def test_addresses_may_be_as_large_as_a_disk() -> None:
    top = (1 << 54) - 512
    result = painted([(0, top), (512, 1024), (top - 512, top + 512)])
    assert result.start.tolist() == [0, 512, 1024, top - 512]
    assert result.winner.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one(count: int) -> None:
    assert painted([(3, 9)] * count).winner.tolist() == [0] * count


def test_many_equal_intervals_leave_the_last() -> None:
    assert painted([(4, 8)] * 5000).winner.tolist() == [4999]
