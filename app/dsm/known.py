"""What a manager knows of one host. No clock, no connection: times are parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.dsm.health import Health, judge
from host_agent.wire.control import GroupFacts, Heartbeat

#: A row is written when something changed, or so long after it was.
ROW_SECONDS = 60.0
#: Checkpoints that wait for the journal to hold them; older ones are written as incomplete.
_WAITING_MAX = 256


@dataclass(frozen=True)
class KnownHost:
    """A host as the database has it. `groups`: by group on it how often it wants a checkpoint,
    seconds; None: not now.
    """

    host_id: UUID
    health: str
    reason: str | None
    tap: str
    held_version: int
    facts: dict[str, Any]
    digest: str | None
    version: int
    groups: Mapping[str, float | None]


@dataclass(frozen=True)
class StatusKey:
    """What of a host's status is worth a row at once when it changes."""

    health: Health
    reason: str | None
    tap: str
    held_version: int
    groups: tuple[tuple[str, str, str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A checkpoint that a host confirmed. `is_complete`: the journal holds it."""

    vpg: str
    id: str
    expected_at: datetime
    source_time_ns: int
    generation: str
    seq: int
    response_us: int
    is_complete: bool = False


@dataclass
class HostState:
    """One host of a place."""

    host_id: UUID
    seen_at: float
    tap: str = "up"
    held_version: int = 0
    version: int = 0
    digest: str | None = None
    groups: tuple[GroupFacts, ...] = ()
    intervals: dict[str, float | None] = field(default_factory=dict)
    written: StatusKey | None = None
    written_at: float = float("-inf")
    waiting: dict[str, deque[Marked]] = field(default_factory=dict)

    def learn(self, known: KnownHost) -> None:
        """What the database has of it now."""
        self.digest, self.version = known.digest, known.version
        self.intervals = dict(known.groups)

    def heard(self, beat: Heartbeat, now: float) -> list[Marked]:
        """A heartbeat: the facts, and the checkpoints that the journal now holds. Of groups that
        are not on this host, whatever it says of them counts for nothing.
        """
        self.seen_at, self.tap = now, beat.tap
        self.groups = tuple(facts for facts in beat.groups if facts.vpg in self.intervals)
        return [done for facts in self.groups for done in self._stored(facts)]

    def _stored(self, facts: GroupFacts) -> list[Marked]:
        waiting = self.waiting.get(facts.vpg)
        done: list[Marked] = []
        while waiting and (
            waiting[0].generation != facts.generation or waiting[0].seq <= facts.stored_seq
        ):
            marked = waiting.popleft()
            is_complete = marked.generation == facts.generation
            done.append(replace(marked, is_complete=is_complete))
        return done

    def mark(self, marked: Marked) -> list[Marked]:
        """A checkpoint was confirmed and waits for the journal. Those that waited too long."""
        waiting = self.waiting.setdefault(marked.vpg, deque())
        waiting.append(marked)
        return [waiting.popleft()] if len(waiting) > _WAITING_MAX else []

    def status(self, now: float, heartbeat_seconds: float) -> StatusKey:
        """How it is now."""
        health, reason = judge(now - self.seen_at, heartbeat_seconds, self.tap, self.groups)
        return StatusKey(
            health,
            reason,
            self.tap,
            self.held_version,
            tuple((one.vpg, one.phase, one.sync, one.gap_reason) for one in self.groups),
        )

    def is_row_due(self, status: StatusKey, now: float) -> bool:
        """Whether a row is to be written; an absent host's is not written again and again."""
        if status != self.written:
            return True
        is_there = status.health != Health.DOWN
        return is_there and now - self.written_at >= ROW_SECONDS


def facts_json(groups: Sequence[GroupFacts]) -> dict[str, Any]:
    """Facts of groups as a row keeps them: by group."""
    return {one.vpg: msgspec.to_builtins(one) for one in groups}


def written_key(known: KnownHost) -> StatusKey | None:
    """The status that the row has, so that a successor does not write what is written already."""
    try:
        health = Health(known.health)
    except ValueError:
        return None
    groups = tuple(
        (vpg, one.get("phase", ""), one.get("sync", ""), one.get("gap_reason"))
        for vpg, one in known.facts.items()
    )
    return StatusKey(health, known.reason, known.tap, known.held_version, groups)
