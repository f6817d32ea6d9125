"""How far a stream is safe, by one clock: ingest's own.

A probe leaves at t. The answer names the newest position that the tap has recorded. Once that
position is stored, and if the tap was recording, everything written before t is safe. So the RPO is
now - t of the newest such probe; a stream that says nothing, is dirty or syncs grows older.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from host_agent.wire.record import State

#: Probes whose answers are awaited. An agent that falls behind answers the rest never.
PROBES_MAX = 16
#: Statements that wait for their position to be stored. When full, every second one goes: what is
#: dropped only makes the RPO look worse.
STATEMENTS_MAX = 64


@dataclass(frozen=True)
class Moment:
    """One instant on both of ingest's clocks: seconds that never run back, ns since 1970."""

    monotonic: float
    wall_ns: int


@dataclass(frozen=True)
class _Statement:
    at: Moment
    head: int


class RpoTracker:
    """The facts of one stream."""

    def __init__(self) -> None:
        self._probes: dict[int, Moment] = {}
        self._statements: deque[_Statement] = deque()
        self._stored = 0
        self.safe: Moment | None = None
        self.head: int | None = None
        self.state = State.NONE
        self.answered: Moment | None = None

    def began(self, stored: int) -> None:
        """A session begins at a stored position: what an earlier one was asked counts no more."""
        self._probes.clear()
        self._statements.clear()
        self._stored = stored
        self.head = None
        self.state = State.NONE

    def probed(self, probe: int, now: Moment) -> None:
        """A probe leaves."""
        self._probes[probe] = now
        while len(self._probes) > PROBES_MAX:
            del self._probes[next(iter(self._probes))]

    def stated(self, probe: int, head: int, state: State, now: Moment) -> None:
        """The answer to a probe arrived; answers to none are ignored."""
        asked = self._probes.pop(probe, None)
        if asked is None or head < self._stored:
            return
        self.head, self.state, self.answered = head, state, now
        if state is not State.RECORDING:
            return
        self._statements.append(_Statement(asked, head))
        if len(self._statements) > STATEMENTS_MAX:
            self._statements = deque(list(self._statements)[::2])
        self._settle()

    def stored(self, seq: int) -> None:
        """Everything up to `seq` is in the store."""
        self._stored = max(self._stored, seq)
        self._settle()

    def rpo_seconds(self, now: float) -> float | None:
        """Seconds of work that a failover now would lose at most; None: never known."""
        return None if self.safe is None else max(0.0, now - self.safe.monotonic)

    def _settle(self) -> None:
        while self._statements and self._statements[0].head <= self._stored:
            at = self._statements.popleft().at
            if self.safe is None or at.monotonic > self.safe.monotonic:
                self.safe = at


@dataclass(frozen=True)
class Progress:
    """Where a stream's positions are, for naming the stage that holds it up."""

    connected: bool
    head: int | None
    received: int
    stored: int
    answer_age_seconds: float | None
    state: State


#: An agent that answers probes each second and has said nothing for so long is away.
ANSWER_AGE_SECONDS_MAX = 5.0


def stage(progress: Progress) -> str | None:
    """The stage that holds the RPO up; None where none does.

    `agent`: no session or no answers. `sync`: the tap has lost track and reads the disk again.
    `network`: recorded, not received (ring, pace or line). `store`: received, not stored.
    """
    age = progress.answer_age_seconds
    if not progress.connected or age is None or age > ANSWER_AGE_SECONDS_MAX:
        return "agent"
    if progress.state is not State.RECORDING:
        return "sync"
    if progress.received > progress.stored:
        return "store"
    if progress.head is not None and progress.head > progress.stored:
        return "network"
    return None
