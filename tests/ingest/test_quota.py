"""A tenant's rate: its bucket, and the part of it that each of its streams is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingest.quota import Quota, shares

_RATES = st.floats(1e4, 1e9)


@given(_RATES, st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_parts_add_up_to_the_rate_and_nobody_is_left_out(rate: float, sent: list[float]) -> None:
    parts = shares(rate, sent)
    assert sum(parts) == pytest.approx(rate)
    assert min(parts) >= rate / (4 * len(sent)) * 0.999


@given(_RATES, st.integers(1, 20))
def test_who_sends_as_much_as_others_has_as_much_as_they(rate: float, count: int) -> None:
    assert shares(rate, [rate] * count) == pytest.approx([rate / count] * count)


def test_who_sends_little_keeps_it_and_leaves_the_rest_to_others() -> None:
    little, much, more = shares(1000.0, [100.0, 5000.0, 9000.0])
    assert little >= 150.0
    assert much == more == pytest.approx((1000.0 - little) / 2)


def test_parts_follow_a_stream_that_begins_to_send() -> None:
    parts = shares(1000.0, [0.0, 1000.0])
    for _ in range(20):
        parts = shares(1000.0, parts)  # both send all that they may
    assert parts == pytest.approx([500.0, 500.0], rel=0.02)


def test_nobody_streams_nobody_is_told() -> None:
    assert shares(1000.0, []) == []


@given(st.floats(1e3, 1e8), st.lists(st.integers(1, 10_000_000), min_size=1, max_size=60))
def test_in_the_long_run_no_more_than_the_rate_comes_in(rate: float, frames: list[int]) -> None:
    quota, now = Quota(rate), 0.0
    for length in frames:
        now += quota.wait_seconds(now)
        assert quota.wait_seconds(now) <= 1e-6 * (1 + now)
        quota.take(length, now)
    # All but the last frame, which may be owed, and one second at once.
    assert sum(frames[:-1]) <= rate * (now + 1.0) * 1.001 + len(frames)


def test_without_a_limit_nothing_waits_and_an_old_debt_is_paid_at_the_new_rate() -> None:
    quota = Quota(None)
    quota.take(10**9, 0.0)
    assert quota.wait_seconds(0.0) == 0.0
    quota.set_rate(1000.0, 0.0)
    quota.take(3000, 0.0)
    assert quota.wait_seconds(0.0) == pytest.approx(3.0)
    quota.set_rate(6000.0, 0.0)
    assert quota.wait_seconds(0.0) == pytest.approx(0.5)
