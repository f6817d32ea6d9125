"""How far a stream is, how old its recovery point is, and which stage holds it up. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from host_agent.stream.ports import SyncStep, TapState
from host_agent.wire.record import State

#: Observations of the tap that wait for *stored*. When full every other one goes, which can only
#: make the recovery point look older than it is.
_OBSERVATIONS_MAX = 2048
#: What happened this many seconds ago counts a third in what is blamed now.
_MEMORY_SECONDS = 5.0
#: Share of recent time from which a wait is the one to blame.
_BLAME_SHARE = 0.25

#: A sync that sent nothing for about so long, while it could, does not end by itself.
_ENDLESS_SECONDS = 30.0

WAITS = ("pace", "window", "network", "prepare", "guest")


class RecoveryPoint:
    """Up to which instant everything is safe: never later than the truth.

    At an observation (head, instant) the tap stated that all writes answered before that instant
    are at positions up to `head`. Once `head` is stored, that instant is safe.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int, float]] = deque()
        self._safe: tuple[int, float] | None = None

    def observe(self, state: TapState, now: float, stored: int) -> None:
        """The tap stated something; `now` is when we asked or heard, whichever is earlier."""
        if state.state != State.RECORDING:
            return
        if state.head <= stored:
            self._advance(state.time, now)
            return
        if self._waiting and self._waiting[-1][0] == state.head:
            self._waiting.pop()
        self._waiting.append((state.head, state.time, now))
        if len(self._waiting) > _OBSERVATIONS_MAX:
            self._waiting = deque(list(self._waiting)[1::2])

    def on_stored(self, seq: int) -> None:
        """Everything up to `seq` is in the store."""
        while self._waiting and self._waiting[0][0] <= seq:
            _, time, now = self._waiting.popleft()
            self._advance(time, now)

    def forget(self) -> None:
        """Another generation: what waits can no longer be confirmed. What is safe stays safe."""
        self._waiting.clear()

    def age_seconds(self, wall_ns: int, now: float) -> float | None:
        """What a failover now would lose, seconds; None if nothing was ever safe.

        The larger of what both clocks say, so that a jump of one cannot flatter.
        """
        if self._safe is None:
            return None
        time, heard = self._safe
        return max(0.0, (wall_ns - time) / 1e9, now - heard)

    @property
    def safe_time(self) -> int | None:
        """The tap's time of the newest safe instant, nanoseconds UTC."""
        return None if self._safe is None else self._safe[0]

    def _advance(self, time: int, now: float) -> None:
        if self._safe is None or time > self._safe[0]:
            self._safe = (time, now)


class Waits:
    """How recent time was spent, by what was waited for. Shares fade."""

    def __init__(self, now: float) -> None:
        self._seconds = dict.fromkeys(WAITS, 0.0)
        self._total = 0.0
        self._at = now

    def add(self, what: str, seconds: float, now: float) -> None:
        """`seconds` were spent waiting for `what`, until now."""
        self._fade(now)
        self._seconds[what] += max(0.0, seconds)

    def shares(self, now: float) -> dict[str, float]:
        """Each wait's share of recent time, 0 to 1."""
        self._fade(now)
        whole = max(self._total, 1e-9)
        return {what: min(1.0, value / whole) for what, value in self._seconds.items()}

    def _fade(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        keep = math.exp(-passed / _MEMORY_SECONDS)
        self._seconds = {what: value * keep for what, value in self._seconds.items()}
        self._total = self._total * keep + _MEMORY_SECONDS * (1.0 - keep)
        self._at = max(self._at, now)


class Rate:
    """Bytes a second over the last seconds."""

    def __init__(self, now: float) -> None:
        self._sum = 0.0
        self._span = 0.0
        self._at = now

    def add(self, count: float, now: float) -> None:
        """`count` bytes more."""
        self._fade(now)
        self._sum += count

    def value(self, now: float) -> float:
        """The rate now."""
        self._fade(now)
        return self._sum / max(self._span, 0.1)

    def _fade(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        keep = math.exp(-passed / _MEMORY_SECONDS)
        self._sum *= keep
        self._span = self._span * keep + _MEMORY_SECONDS * (1.0 - keep)
        self._at = max(self._at, now)


@dataclass
class Counters:
    """Since the agent started. In minus out minus dropped equals held."""

    records_in: int = 0
    records_stored: int = 0
    records_dropped: int = 0
    records_sent: int = 0
    records_sent_again: int = 0
    plain_bytes_sent: int = 0
    plain_bytes_stored: int = 0
    wire_bytes_sent: int = 0
    sync_bytes_sent: int = 0
    readback_bytes: int = 0
    frames_sent: int = 0
    markers_sent: int = 0
    connections: int = 0
    connections_failed: int = 0
    probes_answered: int = 0
    probes_dropped: int = 0
    acknowledgements_ignored: int = 0

    @property
    def records_held(self) -> int:
        """Recorded, not stored, not dropped."""
        return self.records_in - self.records_stored - self.records_dropped


class Tally:
    """Counts records in, stored and dropped over generations, each once."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.generation = b""
        self._head = 0
        self._sent = 0
        self.stored = 0

    def on_ring(self, generation: bytes, freed: int, head: int) -> None:
        """A ring was opened. What an ended generation had not stored is dropped."""
        if generation != self.generation:
            self._counters.records_dropped += self._head - self.stored
            self.generation = generation
            self._head = self._sent = self.stored = freed
        self.on_head(head)

    def on_head(self, head: int) -> None:
        """The tap recorded up to `head`."""
        self._counters.records_in += max(0, head - self._head)
        self._head = max(self._head, head)

    def on_sent(self, first: int, last: int) -> None:
        """A frame leaves, of records that may have left before on another connection."""
        self._counters.records_sent += last - first + 1
        self._counters.records_sent_again += max(0, min(last, self._sent) - first + 1)
        self._sent = max(self._sent, last)

    def on_stored(self, seq: int) -> None:
        """The store has everything up to `seq`."""
        self.on_head(seq)
        self._counters.records_stored += max(0, seq - self.stored)
        self.stored = max(self.stored, seq)


@dataclass
class Compared:
    """What comparing instead of sending has done in this sync. Bytes of disks.

    `phase`: `no`, `learning` (what the journal holds), `comparing`, `done`, `given_up`. `reason`:
    why everything is sent. `place` of the hash list; `tails`: segments after it still to be looked
    at. `seconds` since disks are read.
    """

    phase: str = "no"
    reason: str | None = None
    place: int = 0
    tails: int = 0
    read_bytes: int = 0
    same_bytes: int = 0
    differ_bytes: int = 0
    seconds: float = 0.0

    @property
    def is_unfinished(self) -> bool:
        """Whether it was begun and cut short."""
        return self.phase in ("learning", "comparing")

    def start(self) -> None:
        """A comparison begins."""
        self.phase, self.reason, self.place, self.tails = "learning", None, 0, 0
        self.read_bytes = self.same_bytes = self.differ_bytes = 0
        self.seconds = 0.0

    def give_up(self, reason: str) -> None:
        """Everything that is still marked is sent."""
        self.phase, self.reason = "given_up", reason


@dataclass
class SyncProgress:
    """The sync that runs or comes. Bytes of disks."""

    cause: str | None = None
    total: int = 0
    remaining: int = 0
    began_at: float | None = None
    rate: Rate = field(default_factory=lambda: Rate(0.0))
    is_full: bool = False
    compared: Compared = field(default_factory=Compared)
    last: Compared | None = None

    def on_step(self, step: SyncStep, cause: str | None, now: float) -> None:
        """One `sync` request was answered."""
        if self.began_at is None:
            self.began_at = now
            self.rate = Rate(now)
        done = max(0, self.remaining - step.remaining) if self.total == step.total else step.read
        self.rate.add(done, now)
        self.cause, self.total, self.remaining = cause, step.total, step.remaining

    def on_recording(self) -> None:
        """No sync is wanted."""
        self.cause, self.total, self.remaining, self.began_at = None, 0, 0, None
        if self.compared.phase != "no":
            self.last, self.compared = self.compared, Compared()
        self.is_full = False

    def why_endless(self, now: float) -> str | None:
        """Why this sync does not get nearer to its end at the present rates; None if it does."""
        begun = self.began_at is not None and now - self.began_at > _ENDLESS_SECONDS
        if not begun or not self.total or self.rate.value(now) > 1.0:
            return None
        return "machines fill the line, so that nothing of the sync is sent"

    def eta_seconds(self, now: float) -> float | None:
        """How long it will take at the present rate; None if nobody can say."""
        rate = self.rate.value(now) if self.began_at is not None else 0.0
        return self.remaining / rate if rate > 1.0 and self.total else None


@dataclass(frozen=True)
class Situation:
    """What decides which stage is to blame."""

    phase: str
    failure: str | None
    state: State
    head: int
    sent: int
    stored: int
    rpo_seconds: float | None
    commit_seconds: float
    waits: dict[str, float]


_STORE_FAILURES = ("store_error", "chain_broken")
_INGEST_FAILURES = ("not_authorised", "limit", "protocol", "bad_frame", "sequence_gap", "stopping")


def blame(s: Situation) -> str | None:
    """Which stage holds the recovery point up: guest, ring, pace, network, ingest, store, tap.

    None if nothing does: the recovery point is as new as the commit interval lets it be.
    """
    if s.phase in ("paused", "stopped"):
        return s.phase
    if s.phase in ("no_tap", "not_attached"):
        return "tap"
    if s.phase != "streaming":
        return _blame_connection(s.failure)
    if s.state != State.RECORDING:
        return "ring"
    if s.rpo_seconds is not None and s.rpo_seconds <= 2 * s.commit_seconds + 1:
        return None
    if s.head > s.sent:
        return _blame_sending(s.waits)
    if s.sent <= s.stored:
        return None
    # What left is with the line until the line is free again, and with ingest and its store then.
    return "network" if s.waits.get("network", 0.0) >= _BLAME_SHARE else "store"


def _blame_connection(failure: str | None) -> str:
    if failure in _STORE_FAILURES:
        return "store"
    return "ingest" if failure in _INGEST_FAILURES else "network"


def _blame_sending(waits: dict[str, float]) -> str:
    worst = max(("pace", "window", "network"), key=lambda what: waits.get(what, 0.0))
    if waits.get(worst, 0.0) < _BLAME_SHARE:
        return "guest"
    return "ingest" if worst == "window" else worst
