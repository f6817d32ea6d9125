"""A stream watched from outside: where its records are, and how long each took to be stored.

The tap is asked for a group's newest record (`head`) and for what was given back (`freed`: the
agent gives back what ingest has committed, and nothing else). With the moment of each answer this
makes two staircases. The record s was made after the last answer whose head was below s, and was
stored before the first answer whose freed position is at least s: the time between the two is its
delay, too long by at most two intervals of asking, never too short.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Facts:
    """What the tap says of a stream."""

    head: int
    freed: int
    state: str


@dataclass(frozen=True)
class Observed:
    """Answers in order: monotonic seconds, positions, states."""

    at: NDArray[np.float64]
    head: NDArray[np.int64]
    freed: NDArray[np.int64]
    states: tuple[str, ...]

    @property
    def stayed_recording(self) -> bool:
        """No answer named another state."""
        return all(state == "recording" for state in self.states)

    @property
    def backlog(self) -> NDArray[np.int64]:
        """Records not stored, at each answer."""
        return self.head - self.freed


def delays(observed: Observed) -> NDArray[np.float64]:
    """Seconds from record to stored, of each record that was both made and stored meanwhile."""
    first, last = int(observed.head[0]) + 1, int(observed.freed[-1])
    if last < first:
        return np.empty(0)
    seqs = np.arange(first, last + 1)
    made_before = np.searchsorted(observed.head, seqs, side="left")
    stored_before = np.searchsorted(observed.freed, seqs, side="left")
    result: NDArray[np.float64] = observed.at[stored_before] - observed.at[made_before - 1]
    return result


class Watch:
    """Asks every `interval_seconds` inside its block."""

    def __init__(self, ask: Callable[[], Facts], interval_seconds: float) -> None:
        self._ask = ask
        self._interval = interval_seconds
        self._seen: list[tuple[float, Facts]] = []
        self._end = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def __enter__(self) -> Watch:
        self._running = self._thread.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.shutdown()
        if self._running is not None and value is None:
            self._running.result()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            facts = self._ask()
            self._seen.append((time.monotonic(), facts))

    def observed(self) -> Observed:
        """What was seen until now."""
        seen = list(self._seen)
        return Observed(
            at=np.array([at for at, _ in seen]),
            head=np.array([facts.head for _, facts in seen], np.int64),
            freed=np.array([facts.freed for _, facts in seen], np.int64),
            states=tuple(facts.state for _, facts in seen),
        )
