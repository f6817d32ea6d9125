"""What is known of a stream over all its sessions: figures, positions, how far it is safe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from host_agent.wire.names import Identity
from host_agent.wire.record import State
from workers.ingest.rpo import ANSWER_AGE_SECONDS_MAX, Moment, Progress, RpoTracker, stage


@dataclass
class Counters:
    """Since the process began. In minus stored minus dropped is what is held."""

    frames_in: int = 0
    bytes_in: int = 0
    bytes_stored: int = 0
    bytes_dropped: int = 0
    frames_repeated: int = 0
    segments: int = 0
    sessions: int = 0
    closes: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_held(self) -> int:
        """Received, neither stored nor dropped."""
        return self.bytes_in - self.bytes_stored - self.bytes_dropped


@dataclass
class StreamFacts:
    """One stream. Positions belong to `generation`; times are ingest's own."""

    identity: Identity
    rpo: RpoTracker = field(default_factory=RpoTracker)
    counters: Counters = field(default_factory=Counters)
    connected: bool = False
    generation: bytes = bytes(16)
    epoch: int = 0
    place: int = 0
    received: int = 0
    stored: int = 0
    stored_time_ns: int = 0
    commit_seconds: float | None = None
    commit_age_seconds: float | None = None
    last_salts: tuple[bytes, ...] = ()
    claims_paid_until: float = -math.inf

    def claim_wait_seconds(self, now: float, seconds: float, at_once_max: int) -> float:
        """Count a claim; how long it has to wait for its turn."""
        due = max(self.claims_paid_until, now - seconds * at_once_max)
        self.claims_paid_until = due + seconds
        return max(0.0, due - now)

    def report(self, now: Moment) -> dict[str, object]:
        """What the manager computes the recovery point from. `source_time_ns`: the newest write
        that is stored; `safe_at_ns`: everything before it is, by this machine's clock.
        """
        return {
            "vpg": self.identity.group,
            "host": self.identity.host,
            "connected": self.connected,
            "generation": self.generation.hex() if any(self.generation) else None,
            "epoch": self.epoch,
            "received_seq": self.received,
            "stored_seq": self.stored,
            "source_time_ns": self.stored_time_ns or None,
            "safe_at_ns": None if self.rpo.safe is None else self.rpo.safe.wall_ns,
            "state": self.state_word(now.monotonic),
        }

    def closed(self, code: str) -> None:
        """Count how a session ended."""
        self.counters.closes[code] = self.counters.closes.get(code, 0) + 1

    def stage(self, now: float) -> str | None:
        """Which stage holds the RPO up at this monotonic time."""
        answered = self.rpo.answered
        age = None if answered is None else now - answered.monotonic
        return stage(
            Progress(self.connected, self.rpo.head, self.received, self.stored, age, self.rpo.state)
        )

    def state_word(self, now: float) -> str:
        """`recording`, `dirty` or `syncing` as the tap stated it lately, else `silent`."""
        answered = self.rpo.answered
        fresh = answered is not None and now - answered.monotonic <= ANSWER_AGE_SECONDS_MAX
        if not self.connected or not fresh or self.rpo.state is State.NONE:
            return "silent"
        return self.rpo.state.name.lower()

    def as_dict(self, now: Moment) -> dict[str, object]:
        """The stream as `status` shows it. Seconds, bytes, positions."""
        rpo, counters = self.rpo, self.counters
        seconds = rpo.rpo_seconds(now.monotonic)
        return {
            "group": self.identity.group,
            "host": self.identity.host,
            "connected": self.connected,
            "generation": self.generation.hex() if any(self.generation) else None,
            "epoch": self.epoch,
            "place": self.place,
            "state": self.state_word(now.monotonic),
            "head": rpo.head,
            "received": self.received,
            "stored": self.stored,
            "rpo_seconds": None if seconds is None else round(seconds, 3),
            "safe_at": None if rpo.safe is None else rpo.safe.wall_ns,
            "held_up_by": self.stage(now.monotonic),
            "commit_seconds": self.commit_seconds,
            "commit_age_seconds": self.commit_age_seconds,
            "bytes_in": counters.bytes_in,
            "bytes_stored": counters.bytes_stored,
            "bytes_held": counters.bytes_held,
            "bytes_dropped": counters.bytes_dropped,
            "frames_in": counters.frames_in,
            "frames_repeated": counters.frames_repeated,
            "segments": counters.segments,
            "sessions": counters.sessions,
            "closes": counters.closes,
        }
