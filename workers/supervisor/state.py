"""When a process that died is started again, and what is said of it. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 30.0
#: A process that ran so long had a good start: the next wait is short again.
GOOD_SECONDS = 10.0
#: So many deaths in that time are told to people.
DEATHS_TOLD, DEATHS_WITHIN_SECONDS = 5, 600.0


@dataclass
class Life:
    """One process through its lives. Times are monotonic seconds."""

    started_at: float = 0.0
    wait_seconds: float = 0.0
    due_at: float = 0.0
    restarts: int = 0
    reason: str | None = None
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS_TOLD))

    def started(self, now: float) -> None:
        """It runs."""
        self.started_at = now

    def died(self, now: float, reason: str) -> float:
        """It ended unasked; how many seconds to wait before the next start."""
        good = now - self.started_at >= GOOD_SECONDS
        doubled = BACKOFF_SECONDS_MIN if good else self.wait_seconds * 2
        self.wait_seconds = min(BACKOFF_SECONDS_MAX, max(BACKOFF_SECONDS_MIN, doubled))
        self.due_at = now + self.wait_seconds
        self.restarts += 1
        self.reason = reason
        self.deaths.append(now)
        return self.wait_seconds

    def dies_often(self, now: float) -> bool:
        """Whether somebody should look."""
        full = len(self.deaths) == DEATHS_TOLD
        return full and now - self.deaths[0] < DEATHS_WITHIN_SECONDS

    def as_dict(self, now: float) -> dict[str, object]:
        """For `status`."""
        return {
            "restarts": self.restarts,
            "last_end": self.reason,
            "dies_often": self.dies_often(now),
        }


@dataclass
class Waiting:
    """Connections that have not said whom they want: how many there may be."""

    all_max: int
    address_max: int
    count: int = 0
    by_address: dict[str, int] = field(default_factory=dict)

    def enter(self, address: str) -> bool:
        """Count one more of this address, if there may be one."""
        own = self.by_address.get(address, 0)
        if self.count >= self.all_max or own >= self.address_max:
            return False
        self.count += 1
        self.by_address[address] = own + 1
        return True

    def leave(self, address: str) -> None:
        """One of this address spoke, or went."""
        self.count -= 1
        own = self.by_address.pop(address) - 1
        if own:
            self.by_address[address] = own
