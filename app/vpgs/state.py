"""A group's states, each small and of one idea, and what moves them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.kit.transitions import Transitions

#: Of the history that a group should have by now, less than this is a breach.
HISTORY_SHARE_MIN = 0.75


class Lifecycle(StrEnum):
    """What is wanted of a group. `draft` has no disk; `removed` keeps its journal."""

    DRAFT = "draft"
    INITIALISING = "initialising"
    PROTECTING = "protecting"
    PAUSED = "paused"
    REMOVING = "removing"
    REMOVED = "removed"


class LifecycleEvent(StrEnum):
    """What moves a lifecycle."""

    FILL = "fill"
    SYNCED = "synced"
    PAUSE = "pause"
    RESUME = "resume"
    RESUME_INITIAL = "resume_initial"
    EMPTY = "empty"
    REMOVE = "remove"
    REMOVED = "removed"


class Sync(StrEnum):
    """How a group's journal keeps up with its disks."""

    NONE = "none"
    INITIAL_SYNC = "initial_sync"
    BITMAP_SYNC = "bitmap_sync"
    DELTA_SYNC = "delta_sync"
    IN_SYNC = "in_sync"


class SyncEvent(StrEnum):
    """What moves a sync."""

    BEGIN_INITIAL = "begin_initial"
    BEGIN_BITMAP = "begin_bitmap"
    BEGIN_DELTA = "begin_delta"
    FINISH = "finish"
    RESET = "reset"


class Sla(StrEnum):
    """Whether the promises are kept. Worked out from facts whenever it is asked for."""

    MEETING = "meeting"
    RPO_BREACHED = "rpo_breached"
    HISTORY_BREACHED = "history_breached"
    UNKNOWN = "unknown"


class Recovery(StrEnum):
    """Which recovery a group is in."""

    NONE = "none"
    TESTING = "testing"
    FAILING_OVER = "failing_over"
    MOVING = "moving"
    BEFORE_COMMIT = "before_commit"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling_back"
    PROMOTING = "promoting"
    RECOVERED = "recovered"


class RecoveryEvent(StrEnum):
    """What moves a recovery."""

    START_TEST = "start_test"
    STOP_TEST = "stop_test"
    START_FAILOVER = "start_failover"
    START_MOVE = "start_move"
    RUN = "run"
    FAIL = "fail"
    COMMIT = "commit"
    COMMITTED = "committed"
    ROLL_BACK = "roll_back"
    ROLLED_BACK = "rolled_back"
    PROMOTED = "promoted"
    PROTECT_AGAIN = "protect_again"


class Link(StrEnum):
    """Whether the hosts of a group are heard."""

    CONNECTED = "connected"
    DEGRADED = "degraded"
    DISCONNECTED = "disconnected"


class LinkEvent(StrEnum):
    """What moves a link."""

    CONNECT = "connect"
    DEGRADE = "degrade"
    DISCONNECT = "disconnect"


_L, _LE = Lifecycle, LifecycleEvent
LIFECYCLE = Transitions(
    {
        (_L.DRAFT, _LE.FILL): _L.INITIALISING,
        (_L.DRAFT, _LE.REMOVE): _L.REMOVING,
        (_L.INITIALISING, _LE.SYNCED): _L.PROTECTING,
        (_L.INITIALISING, _LE.PAUSE): _L.PAUSED,
        (_L.INITIALISING, _LE.EMPTY): _L.DRAFT,
        (_L.INITIALISING, _LE.REMOVE): _L.REMOVING,
        (_L.PROTECTING, _LE.PAUSE): _L.PAUSED,
        (_L.PROTECTING, _LE.EMPTY): _L.DRAFT,
        (_L.PROTECTING, _LE.REMOVE): _L.REMOVING,
        (_L.PAUSED, _LE.RESUME): _L.PROTECTING,
        (_L.PAUSED, _LE.RESUME_INITIAL): _L.INITIALISING,
        (_L.PAUSED, _LE.EMPTY): _L.DRAFT,
        (_L.PAUSED, _LE.REMOVE): _L.REMOVING,
        (_L.REMOVING, _LE.REMOVED): _L.REMOVED,
    }
)
#: What a host still has to work on.
LIVE = frozenset({Lifecycle.INITIALISING, Lifecycle.PROTECTING, Lifecycle.PAUSED})
#: What may be changed.
CHANGEABLE = LIVE | {Lifecycle.DRAFT}

_S, _SE = Sync, SyncEvent
SYNC = Transitions(
    {
        (_S.NONE, _SE.BEGIN_INITIAL): _S.INITIAL_SYNC,
        (_S.NONE, _SE.BEGIN_DELTA): _S.DELTA_SYNC,
        # A short one begins and ends between two reports.
        (_S.NONE, _SE.FINISH): _S.IN_SYNC,
        **{
            (state, event): following
            for state in (_S.INITIAL_SYNC, _S.BITMAP_SYNC, _S.DELTA_SYNC, _S.IN_SYNC)
            for event, following in {
                _SE.BEGIN_INITIAL: _S.INITIAL_SYNC,
                _SE.BEGIN_BITMAP: _S.BITMAP_SYNC,
                _SE.BEGIN_DELTA: _S.DELTA_SYNC,
                _SE.FINISH: _S.IN_SYNC,
                _SE.RESET: _S.NONE,
            }.items()
        },
    }
)
#: The event by which a report says that a sync is there.
SYNC_REPORTED = {
    Sync.INITIAL_SYNC: SyncEvent.BEGIN_INITIAL,
    Sync.BITMAP_SYNC: SyncEvent.BEGIN_BITMAP,
    Sync.DELTA_SYNC: SyncEvent.BEGIN_DELTA,
    Sync.IN_SYNC: SyncEvent.FINISH,
}

_R, _RE = Recovery, RecoveryEvent
RECOVERY = Transitions(
    {
        (_R.NONE, _RE.START_TEST): _R.TESTING,
        (_R.NONE, _RE.START_FAILOVER): _R.FAILING_OVER,
        (_R.NONE, _RE.START_MOVE): _R.MOVING,
        (_R.TESTING, _RE.STOP_TEST): _R.NONE,
        # A disaster does not wait for the end of a test.
        (_R.TESTING, _RE.START_FAILOVER): _R.FAILING_OVER,
        (_R.FAILING_OVER, _RE.RUN): _R.BEFORE_COMMIT,
        (_R.FAILING_OVER, _RE.FAIL): _R.ROLLING_BACK,
        (_R.MOVING, _RE.RUN): _R.BEFORE_COMMIT,
        (_R.MOVING, _RE.FAIL): _R.ROLLING_BACK,
        (_R.BEFORE_COMMIT, _RE.COMMIT): _R.COMMITTING,
        (_R.BEFORE_COMMIT, _RE.ROLL_BACK): _R.ROLLING_BACK,
        (_R.COMMITTING, _RE.COMMITTED): _R.PROMOTING,
        (_R.ROLLING_BACK, _RE.ROLLED_BACK): _R.NONE,
        (_R.PROMOTING, _RE.PROMOTED): _R.RECOVERED,
        (_R.RECOVERED, _RE.PROTECT_AGAIN): _R.NONE,
    }
)

_K, _KE = Link, LinkEvent
LINK = Transitions(
    {
        (state, event): following
        for state in Link
        for event, following in {
            _KE.CONNECT: _K.CONNECTED,
            _KE.DEGRADE: _K.DEGRADED,
            _KE.DISCONNECT: _K.DISCONNECTED,
        }.items()
    }
)
#: The event by which a report says that a link is so.
LINK_REPORTED = {
    Link.CONNECTED: LinkEvent.CONNECT,
    Link.DEGRADED: LinkEvent.DEGRADE,
    Link.DISCONNECTED: LinkEvent.DISCONNECT,
}


@dataclass(frozen=True)
class Promise:
    """What was promised, in seconds."""

    rpo_seconds: int
    history_seconds: int


@dataclass(frozen=True)
class Facts:
    """What a promise is measured by. None: there is no complete checkpoint yet."""

    recoverable_at: datetime | None
    oldest_at: datetime | None
    protected_since: datetime | None


def rpo_actual_seconds(facts: Facts, now: datetime) -> float | None:
    """The work that would be lost if the source vanished now; None where nothing was ever safe."""
    if facts.recoverable_at is None:
        return None
    return max(0.0, (now - facts.recoverable_at).total_seconds())


def history_actual_seconds(facts: Facts) -> float | None:
    """From the oldest to the newest moment that can be chosen."""
    if facts.recoverable_at is None or facts.oldest_at is None:
        return None
    return max(0.0, (facts.recoverable_at - facts.oldest_at).total_seconds())


def _age_seconds(facts: Facts) -> float:
    """From the first complete checkpoint ever to the newest."""
    if facts.recoverable_at is None or facts.protected_since is None:
        return 0.0
    return (facts.recoverable_at - facts.protected_since).total_seconds()


def sla_of(promise: Promise, facts: Facts, now: datetime) -> Sla:
    """Whether the promises are kept now. An RPO that is missed is said before a short history."""
    rpo, history = rpo_actual_seconds(facts, now), history_actual_seconds(facts)
    if rpo is None or history is None:
        return Sla.UNKNOWN
    if rpo > promise.rpo_seconds:
        return Sla.RPO_BREACHED
    if history < HISTORY_SHARE_MIN * min(promise.history_seconds, _age_seconds(facts)):
        return Sla.HISTORY_BREACHED
    return Sla.MEETING
