"""What a tenant's streams may send together: told to each agent as its part, and held here.

An agent keeps to its part, so that the wait is in its ring and shown as pace; what comes beyond is
read later. The guest notices neither.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What may come at once after a pause, seconds of the rate.
_BURST_SECONDS = 1.0
#: Room to grow for whoever sends less than its part.
_GROWTH = 1.5


class Quota:
    """A bucket of bytes. None: without a limit. Times are monotonic seconds.

    What is taken may exceed what is there; then nothing is, until the debt is paid. So a frame need
    not be cut, and the long-run rate holds exactly.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self.waits = 0
        self._left, self._at = (rate or 0.0) * _BURST_SECONDS, 0.0

    def set_rate(self, rate: float | None, now: float) -> None:
        """Change the limit. Old debt is paid at the new rate."""
        self._refill(now)
        self.rate = rate

    def wait_seconds(self, now: float) -> float:
        """How long until something may be taken; 0 for now."""
        self._refill(now)
        if self.rate is None or self._left > -1.0:  # less than a byte is rounding
            return 0.0
        return -self._left / self.rate

    def take(self, length: int, now: float) -> None:
        """Count what is received now."""
        self._refill(now)
        if self.rate is not None:
            self._left -= length

    def _refill(self, now: float) -> None:
        if self.rate is None:
            self._left = 0.0
        else:
            gained = self.rate * max(0.0, now - self._at)
            self._left = min(self.rate * _BURST_SECONDS, self._left + gained)
        self._at = max(self._at, now)


def shares(rate: float, sent: Sequence[float]) -> list[float]:
    """A part of `rate` for each stream, by what each sent lately, bytes a second.

    Max-min: who sends little keeps that and room to grow, the others have equal parts of the rest.
    The parts add up to the rate, and none is so small that its stream could not begin to send.
    """
    if not sent:
        return []
    least = rate / (4 * len(sent))
    wanted = [max(least, one * _GROWTH) for one in sent]
    parts, left = [0.0] * len(sent), rate
    for done, index in enumerate(sorted(range(len(sent)), key=wanted.__getitem__)):
        parts[index] = min(wanted[index], left / (len(sent) - done))
        left -= parts[index]
    return [part + left / len(sent) for part in parts]
