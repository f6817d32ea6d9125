"""What is kept, decided: tables."""

from __future__ import annotations

import pytest

from workers.journal.retention import (
    DELETES_MAX,
    NANOSECONDS,
    BadPolicy,
    Cut,
    Policy,
    Standing,
    align,
    choose_cut,
    deletes_max,
    history_now,
    is_suspicious,
    layers_to_merge,
    newest_before,
    place_by_size,
    standing_boundary,
)

HOUR = 3600
T = 1_767_225_600 * NANOSECONDS
YEAR = 365 * 24 * HOUR * NANOSECONDS
MINUTE = 60 * NANOSECONDS


@pytest.mark.invariant("I15")
@pytest.mark.parametrize(
    ("committed", "stated", "store", "now"),
    [
        (T, 0, T, T),
        (T, T + MINUTE, T + MINUTE, T + MINUTE),  # idle, and stated so
        (T, 0, T + YEAR, T),  # the stream is gone, or the store's clock jumped: its window stays
        (T + YEAR, 0, T, T),  # ingest's clock jumped: not believed
        (T, T + YEAR, T, T),
        (T + MINUTE, 0, T, T + MINUTE),  # a little ahead
        (T, T + MINUTE, None, T + MINUTE),  # a store without a clock
        (T + YEAR, 0, T - YEAR, T - YEAR),  # both wrong: the older, history only gets longer
    ],
)
def test_now(committed: int, stated: int, store: int | None, now: int) -> None:
    assert history_now(committed, stated, store) == now


@pytest.mark.parametrize(
    ("times", "limit", "place"),
    [
        ([], 5, 0), ([9], 5, 0), ([5], 5, 1), ([1, 2, 3], 9, 3), ([1, 5, 5, 5, 9], 5, 4),
        ([6, 7], 5, 0), ([1, 1, 1], 1, 3),
    ],
)  # fmt: skip
def test_newest_before(times: list[int], limit: int, place: int) -> None:
    assert newest_before(lambda n: times[n - 1], 1, len(times), limit) == place


def test_newest_before_asks_few() -> None:
    asked = []

    def committed_at(place: int) -> int:
        asked.append(place)
        return place

    assert newest_before(committed_at, 101, 2_600_000, 1_234_567) == 1_234_567
    assert len(asked) <= 22


@pytest.mark.parametrize(
    ("sizes", "layers", "most", "place"),
    [
        ([], 0, 10, 0), ([(1, 5), (2, 5)], 0, 10, 0), ([(1, 5), (2, 5)], 1, 10, 1),
        ([(1, 5), (2, 5)], 10, 10, 2), ([(1, 5), (2, 5)], 999, 10, 2), ([(7, 50)], 0, 10, 7),
    ],
)  # fmt: skip
def test_place_by_size(sizes: list[tuple[int, int]], layers: int, most: int, place: int) -> None:
    assert place_by_size(sizes, layers, most) == place


@pytest.mark.parametrize(
    ("window", "size", "newest", "cut"),
    [
        (5, 0, 9, Cut(5, "window")), (5, 7, 9, Cut(7, "size_limit")),
        (5, 9, 9, Cut(8, "size_limit")), (9, 0, 9, Cut(8, "window")), (5, 5, 9, Cut(5, "window")),
    ],
)  # fmt: skip
def test_cut(window: int, size: int, newest: int, cut: Cut) -> None:
    assert choose_cut(window, size, newest) == cut


@pytest.mark.parametrize(
    ("place", "first", "aligned"),
    [(300, 1, 300), (5000, 1, 4864), (5000, 4990, 5000), (4864, 1, 4864), (10_000, 9_000, 10_000)],
)
def test_align(place: int, first: int, aligned: int) -> None:
    assert align(place, first, 256) == aligned


@pytest.mark.parametrize(
    ("over", "new", "merged"),
    [([], 5, 0), ([4], 5, 1), ([100], 5, 0), ([10, 30, 500], 5, 2), ([11], 5, 0), ([0, 0], 0, 2)],
)
def test_layers_to_merge(over: list[int], new: int, merged: int) -> None:
    assert layers_to_merge(over, new) == merged


def test_few_layers_lie_over_each_other() -> None:
    """A thousand equal folds: no more than a handful of layers, each byte written a few times."""
    layers: list[int] = []
    written = 0
    for _ in range(1000):
        merged = layers_to_merge(reversed(layers), 10)
        size = 10 + sum(layers[len(layers) - merged :])
        layers = [*layers[: len(layers) - merged], size]
        written += size
    assert len(layers) <= 12
    assert written <= 1000 * 10 * 12


def boundary(number: int, hours_ago: float, window: int = 24) -> Standing:
    return Standing(number, number * 100, T - int(hours_ago * HOUR) * NANOSECONDS, window * HOUR)


@pytest.mark.invariant("I15")
@pytest.mark.parametrize(
    ("known", "grace", "found"),
    [
        ([], 24, None),
        ([boundary(1, 23)], 24, None),
        ([boundary(1, 24)], 24, 1),
        ([boundary(1, 50), boundary(2, 30), boundary(3, 2)], 24, 2),
        ([boundary(1, -5)], 0, None),  # of the future
        # The window was made shorter: a day at least, whatever the grace.
        ([boundary(1, 50), boundary(2, 2, window=1)], 1, 1),
        ([boundary(1, 50), boundary(2, 25, window=1)], 1, 2),
        ([boundary(1, 50, window=1), boundary(2, 2)], 1, 2),
        # A later one never stands before an earlier one.
        ([boundary(1, 2), boundary(2, 50)], 24, None),
    ],
)
def test_standing(known: list[Standing], grace: float, found: int | None) -> None:
    standing = standing_boundary(known, T, grace * HOUR)
    assert (standing.number if standing else None) == found


@pytest.mark.parametrize(
    ("deletes", "objects", "suspicious"),
    [
        (100, 100, False), (DELETES_MAX, DELETES_MAX, False), (DELETES_MAX + 1, 20_000, True),
        (50_000, 1_000_000, False), (50_001, 1_000_000, True),
    ],
)  # fmt: skip
def test_suspicious(deletes: int, objects: int, suspicious: bool) -> None:
    assert is_suspicious(deletes, objects) is suspicious
    assert deletes_max(objects) == max(DELETES_MAX, objects // 100)


@pytest.mark.parametrize(("hours", "size"), [(0.5, None), (0, None), (721, None), (24, 0)])
def test_policies_that_no_group_can_have(hours: float, size: int | None) -> None:
    with pytest.raises(BadPolicy):
        Policy(int(hours * HOUR), size)
    assert Policy(720 * HOUR, 1).size_bytes_max == 1
