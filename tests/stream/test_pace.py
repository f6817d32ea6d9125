"""Token buckets and delays by themselves, with time as a number."""

from __future__ import annotations

import random

import pytest

from host_agent.stream.pace import BURST_SECONDS, Backoff, TokenBucket, frame_bytes
from tests.stream.harness import Randomness


def drive(bucket: TokenBucket, seconds: float, size: int, start: float = 0.0) -> list[float]:
    """Send as fast as it lets; the instants at which `size` bytes left."""
    now, sent = start, []
    while now < start + seconds:
        wait = bucket.wait_seconds(now)
        if wait > 0:
            now += wait
            continue
        bucket.take(size, now)
        sent.append(now)
    return sent


def worst_window(sent: list[float], size: int, seconds: float) -> float:
    """Most bytes in any window of that length."""
    return max(size * sum(at <= other < at + seconds for other in sent) for at in sent)


@pytest.mark.parametrize("rate", [50_000.0, 1_000_000.0, 12_500_000.0])
def test_long_run_rate_is_exact_and_no_second_exceeds_it_by_more_than_a_frame(rate: float) -> None:
    size = frame_bytes(rate, 4 << 20)
    sent = drive(TokenBucket(rate, 0.0), 20.0, size)
    total = size * len(sent)
    assert total == pytest.approx(rate * 20, rel=0.05, abs=2 * size)
    assert worst_window(sent, size, 1.0) <= rate * (1 + BURST_SECONDS) + size


def test_tokens_do_not_pile_up_while_nothing_is_sent() -> None:
    bucket = TokenBucket(1_000_000.0, 0.0)
    sent = drive(bucket, 1.0, 10_000, start=3600.0)
    assert 10_000 * len(sent) <= 1_000_000 * (1 + BURST_SECONDS) + 10_000


def test_a_new_rate_counts_from_its_instant() -> None:
    bucket = TokenBucket(100_000.0, 0.0)
    bucket.take(50_000, 0.0)
    assert bucket.wait_seconds(0.0) == pytest.approx(0.5)
    bucket.set_rate(1_000_000.0, 0.0)
    assert bucket.wait_seconds(0.0) == pytest.approx(0.05)
    bucket.set_rate(None, 0.0)
    assert bucket.wait_seconds(0.0) == 0.0


def test_time_that_stands_still_or_runs_back_gives_nothing() -> None:
    bucket = TokenBucket(1000.0, 10.0)
    bucket.take(1000, 10.0)
    assert bucket.wait_seconds(10.0) == pytest.approx(1.0)
    assert bucket.wait_seconds(5.0) == pytest.approx(1.0)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="pause"):
        TokenBucket(1.0, 0.0).set_rate(0.0, 0.0)


def test_delays_double_from_a_tenth_to_thirty_seconds() -> None:
    backoff = Backoff(Randomness())
    steps = [backoff.next() for _ in range(12)]
    assert steps[:4] == [0.05, 0.1, 0.2, 0.4]
    assert steps[-1] == 15.0
    backoff.reset()
    assert backoff.next() == 0.05


def test_delays_are_spread() -> None:
    class Spread(Randomness):
        def __init__(self) -> None:
            super().__init__()
            self._rng = random.Random(3)

        def fraction(self) -> float:
            return self._rng.random()

    backoff = Backoff(Spread())
    for _ in range(20):
        backoff.next()
    delays = {round(backoff.next(), 3) for _ in range(20)}
    assert len(delays) > 15
    assert all(15.0 <= delay <= 30.0 for delay in delays)


def test_what_ingest_asks_for_is_waited_at_least() -> None:
    assert Backoff(Randomness()).next(at_least=5.0) == 5.0
