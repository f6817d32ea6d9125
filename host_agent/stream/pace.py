"""Pacing: a token bucket that goes into debt for one frame, and delays that grow."""

from __future__ import annotations

from host_agent.stream.ports import Random

#: Tokens never pile up for longer than this: what may leave at once after a pause, in seconds.
BURST_SECONDS = 0.1


class TokenBucket:
    """Bytes a second. None is without a limit.

    What is sent is taken even if it exceeds the tokens; the next one then waits until the debt is
    paid. So a frame never has to be cut to fit, and the long-run rate holds exactly.
    """

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate = rate
        self._tokens = 0.0
        self._at = now

    @property
    def rate(self) -> float | None:
        """The limit, bytes a second."""
        return self._rate

    def set_rate(self, rate: float | None, now: float) -> None:
        """Change the limit. Old debt is not forgiven, it is paid at the new rate."""
        if rate is not None and rate <= 0:
            raise ValueError(f"A rate of {rate} sends nothing; pause the stream instead.")
        self._refill(now)
        self._rate = rate
        self._refill(now)

    def wait_seconds(self, now: float) -> float:
        """How long until something may be sent; 0 for now."""
        self._refill(now)
        # Less than a byte of debt is rounding; waiting for it would not end.
        if self._rate is None or self._tokens > -1.0:
            return 0.0
        return -self._tokens / self._rate

    def take(self, size: float, now: float) -> None:
        """Account for `size` bytes that are sent now."""
        self._refill(now)
        if self._rate is not None:
            self._tokens -= size

    def _refill(self, now: float) -> None:
        if self._rate is None:
            self._tokens = 0.0
        else:
            gained = self._rate * max(0.0, now - self._at)
            self._tokens = min(self._rate * BURST_SECONDS, self._tokens + gained)
        self._at = max(self._at, now)


class Backoff:
    """Delays from 0.1 s to 30 s, doubled each time, with jitter: hosts do not come in step."""

    def __init__(self, random: Random, shortest: float = 0.1, longest: float = 30.0) -> None:
        self._random = random
        self._shortest = shortest
        self._longest = longest
        self._tries = 0

    @property
    def tries(self) -> int:
        """Failures since the last success."""
        return self._tries

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to wait after one more failure: half to whole of the step."""
        step = min(self._longest, self._shortest * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return max(at_least, step * (0.5 + 0.5 * self._random.fraction()))

    def reset(self) -> None:
        """After a success."""
        self._tries = 0


def frame_bytes(rate: float | None, largest: int, smallest: int = 64 * 1024) -> int:
    """How much to put into one frame so that it leaves within about a tenth of a second."""
    if rate is None:
        return largest
    return int(min(largest, max(smallest, rate * BURST_SECONDS)))
