"""What to do next about one mirror of a running machine's disk: pure decisions.

QEMU keeps the disk and mirrors every write into the tap. Twice a second, and at each event, the
agent looks at the tap and then at QEMU, and does what is decided here. Nothing depends on what an
agent remembers: one that was killed looks again and goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Any

Fields = dict[str, Any]

#: A job that halted is resumed after so long, then after twice that, and so on.
_RESUME_SECONDS = 0.2
_RESUME_SECONDS_MAX = 5.0
#: A mirror that could not be started is tried again after so long, doubled each time.
_START_SECONDS = 1.0
_START_SECONDS_MAX = 30.0
#: A mirror without a connection gets a nudge this often, and is begun again after that long.
_NUDGE_SECONDS = 1.0
_UNCONNECTED_SECONDS = 15.0
#: A job is resumed only when the ring is filled no more than that: once ready, QEMU copies what is
#: missing as fast as it can, whatever speed the job has.
_RESUME_FILL_MAX = 0.25

MIRRORED, SYNCING, UNPROTECTED = "mirrored", "syncing", "unprotected"


@dataclass(frozen=True)
class Names:
    """What our job and our nodes are called in QEMU: the same after every restart.

    QEMU allows 31 characters, so a name is a hash of whose mirror it is.
    """

    job: str
    target: str
    filter: str

    @classmethod
    def of(cls, nbd_socket: str, disk: str) -> Names:
        """The names of the mirror into one export."""
        mark = hashlib.blake2s(f"{nbd_socket}\0{disk}".encode(), digest_size=6).hexdigest()
        return cls(f"holdfast-{mark}", f"holdfast-t-{mark}", f"holdfast-f-{mark}")


@dataclass(frozen=True)
class TapView:
    """What the tap says of the disk. `needs`: all, rest or nothing; `round` names this answer."""

    round: int
    clients: int
    needs: str
    state: str
    cause: str
    refused: int
    ring_bytes: int
    ring_used_bytes: int

    @classmethod
    def of(cls, answer: Fields) -> TapView:
        """From the tap's answer; KeyError or ValueError if it lacks something."""
        return cls(**{name: kind(answer[name]) for name, kind in _TAP_FIELDS.items()})

    @property
    def fill(self) -> float:
        """How full the ring is, 0 to 1."""
        return self.ring_used_bytes / max(1, self.ring_bytes)


_TAP_FIELDS: dict[str, Any] = {
    "round": int, "clients": int, "needs": str, "state": str, "cause": str,
    "refused": int, "ring_bytes": int, "ring_used_bytes": int,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Our job as QEMU tells it, in bytes. `dirty`: not brought yet; None where it is not told."""

    status: str
    is_ready: bool
    is_paused: bool
    io_status: str
    length: int
    done: int
    speed: int
    dirty: int | None = None

    @classmethod
    def of(cls, told: Fields, dirty: int | None) -> Job:
        """From an entry of query-block-jobs."""
        return cls(
            status=str(told.get("status", "running")),
            is_ready=bool(told.get("ready")),
            is_paused=bool(told.get("paused")),
            io_status=str(told.get("io-status", "ok")),
            length=int(told.get("len", 0)),
            done=int(told.get("offset", 0)),
            speed=int(told.get("speed", 0)),
            dirty=dirty,
        )

    @property
    def is_failed(self) -> bool:
        """Whether it met an error, and waits to be resumed."""
        return self.io_status != "ok"

    @property
    def is_ending(self) -> bool:
        """Whether it is on its way out."""
        return self.status in ("waiting", "pending", "aborting", "concluded", "undefined", "null")

    @property
    def has_map_empty(self) -> bool:
        """Whether nothing waits to be brought. What is on its way may still fail."""
        return (self.length == self.done) if self.dirty is None else self.dirty == 0

    @property
    def has_all_brought(self) -> bool:
        """Whether nothing waits and nothing of what it copied is on its way.

        Writes of the machine that are on their way count as not done, so under load the bytes never
        agree. A job that stands paused has finished all its own copying, and the map is the truth.
        """
        is_standing = self.status == "standby"
        return self.has_map_empty and (is_standing or self.length == self.done)


@dataclass(frozen=True)
class QemuView:
    """What QEMU has of ours."""

    job: Job | None
    has_target: bool


class Act(Enum):
    """What to do at QEMU or at the tap."""

    WAIT = "wait"
    START = "start"
    RESUME = "resume"
    CANCEL = "cancel"
    REMOVE_TARGET = "remove the target"
    PAUSE = "pause"
    CONFIRM = "confirm"
    NUDGE = "nudge"


@dataclass(frozen=True)
class Step:
    """An act, how the disk is, and why. `is_lost`: the tap must know that writes may be missed."""

    act: Act
    health: str
    why: str
    is_lost: bool = True


class Mirror:
    """Decides for one mirror. Holds only what paces it: times and the number of failures."""

    def __init__(self) -> None:
        self._start_at = 0.0
        self._starts = 0
        self._resume_at = 0.0
        self._resumes = 0
        self._missing = 0
        self._unconnected_since: float | None = None
        self._nudged_at = 0.0
        self.ended: str | None = None

    def on_start_failed(self, now: float) -> None:
        """QEMU refused the job or its target."""
        wait = min(_START_SECONDS_MAX, _START_SECONDS * 2**self._starts)
        self._starts = min(self._starts + 1, 16)
        self._start_at = now + wait

    def hurry(self) -> None:
        """Somebody looked after it: do not wait."""
        self._start_at, self._starts = 0.0, 0

    def decide(self, tap: TapView, qemu: QemuView, now: float) -> Step:
        """The next step. `tap` was looked at before `qemu`."""
        job = qemu.job
        if job is None:
            return self._without_job(tap, qemu, now)
        if job.is_ending:
            return Step(Act.WAIT, UNPROTECTED, "the mirror job is ending")
        if tap.needs == "all":
            return Step(Act.CANCEL, SYNCING, f"the whole disk is needed again ({tap.cause})")
        if job.is_failed:
            return self._resume(tap, job, "the mirror job met an error", now)
        if job.is_paused:
            return self._paused(tap, job, now)
        if not (job.is_ready and job.has_map_empty):
            self._unconnected_since = None
            return Step(Act.WAIT, SYNCING, "QEMU copies what is missing", is_lost=False)
        if tap.clients != 1:
            return self._unconnected(tap, now)
        self._unconnected_since = None
        if tap.needs == "nothing" or job.has_all_brought:
            return self._confirm()
        return Step(Act.PAUSE, SYNCING, "QEMU ends what is on its way", is_lost=False)

    def _confirm(self) -> Step:
        self._starts = self._resumes = 0
        self.ended = None
        return Step(Act.CONFIRM, MIRRORED, "every write is mirrored", is_lost=False)

    def _paused(self, tap: TapView, job: Job, now: float) -> Step:
        """By us, so that what is on its way ends, or by somebody. Writes are mirrored still."""
        if tap.needs == "nothing":
            return Step(Act.RESUME, MIRRORED, "every write is mirrored", is_lost=False)
        if job.status in ("ready", "running"):
            return Step(Act.WAIT, SYNCING, "QEMU ends what is on its way", is_lost=False)
        if job.has_all_brought and tap.clients == 1:
            return self._confirm()
        return self._resume(tap, job, "the mirror job is paused", now)

    def _without_job(self, tap: TapView, qemu: QemuView, now: float) -> Step:
        why = self.ended or "the machine has no mirror yet"
        if qemu.has_target:
            return Step(Act.REMOVE_TARGET, UNPROTECTED, why)
        if tap.state == "dirty":
            return Step(Act.WAIT, UNPROTECTED, f"{why}; waits for the stream ({tap.cause})")
        if tap.clients > 0:
            return Step(Act.WAIT, UNPROTECTED, f"{why}; another client uses the export")
        if now < self._start_at:
            return Step(Act.WAIT, UNPROTECTED, why)
        self._resumes = 0
        self._unconnected_since = None
        return Step(Act.START, UNPROTECTED, why)

    def _resume(self, tap: TapView, job: Job, why: str, now: float) -> Step:
        missing = job.length - job.done if job.dirty is None else job.dirty
        if missing < self._missing:
            # It stopped because the ring was full again, and brought a ring's worth before.
            self._resumes, self._resume_at = 0, min(self._resume_at, now)
            self._missing = missing
        if tap.state == "dirty" or tap.fill > _RESUME_FILL_MAX:
            return Step(Act.WAIT, UNPROTECTED, f"{why}; waits for the stream ({tap.cause})")
        if now < self._resume_at:
            return Step(Act.WAIT, UNPROTECTED, why)
        self._missing = missing
        self._resume_at = now + min(_RESUME_SECONDS_MAX, _RESUME_SECONDS * 2**self._resumes)
        self._resumes = min(self._resumes + 1, 16)
        return Step(Act.RESUME, UNPROTECTED, why)

    def _unconnected(self, tap: TapView, now: float) -> Step:
        """QEMU connects again at its next write only; an idle machine would be left open."""
        if tap.clients > 1:
            return Step(Act.WAIT, UNPROTECTED, "another client uses the export")
        if self._unconnected_since is None:
            self._unconnected_since = now
        why = "QEMU is not connected to the tap"
        if now - self._unconnected_since > _UNCONNECTED_SECONDS:
            return Step(Act.CANCEL, UNPROTECTED, f"{why}: the mirror begins again")
        if now - self._nudged_at < _NUDGE_SECONDS:
            return Step(Act.WAIT, UNPROTECTED, why)
        self._nudged_at = now
        return Step(Act.NUDGE, UNPROTECTED, why)


def ended_why(event: Fields, job: str) -> str | None:
    """Why our job ended, as an event tells it; None for any other event."""
    data = event.get("data") or {}
    name = event.get("event")
    if name in ("SHUTDOWN", "POWERDOWN"):
        return "the machine was shut down"
    if data.get("device") != job:
        return None
    if name == "BLOCK_JOB_COMPLETED":
        error = data.get("error")
        return f"the mirror job ended: {error}" if error else "somebody completed the mirror job"
    if name == "BLOCK_JOB_CANCELLED":
        return "somebody cancelled the mirror job"
    return None


def concerns(event: Fields, job: str) -> bool:
    """Whether an event may have changed our mirror."""
    data = event.get("data") or {}
    is_ours = job in (data.get("device"), data.get("id"))
    return is_ours or event.get("event") in ("SHUTDOWN", "RESET", "STOP", "RESUME")


#: Limits of the speed of a copy, bytes a second; and where pacing begins.
_SPEED_MIN = 1 << 20


#: What QEMU copies at once, whatever its speed is: part of the ring.
_PIECES = 16
_PIECE_MIN, _PIECE_MAX = 1 << 20, 16 << 20


@dataclass(frozen=True)
class Pace:
    """How a copy begins: bytes a second, and bytes that it takes at once."""

    speed: int
    piece: int


def first_pace(ring_bytes: int, limit: float | None) -> Pace:
    """How a copy begins: a quarter of the ring in a second."""
    piece = max(_PIECE_MIN, min(ring_bytes // _PIECES, _PIECE_MAX))
    return Pace(_within(ring_bytes / 4, ring_bytes, limit), piece)


def pace(speed: int, tap: TapView, limit: float | None) -> int:
    """The speed of a copy for the next moment: what is copied may not fill the guests' ring.

    Guests' writes are not slowed by it: QEMU counts only what it copies behind them.
    """
    if tap.fill > 0.5 or tap.state == "dirty":
        return _within(speed / 2, tap.ring_bytes, limit)
    if tap.fill < 0.25:
        return _within(speed * 1.5, tap.ring_bytes, limit)
    return speed


def _within(speed: float, ring_bytes: int, limit: float | None) -> int:
    # Twice the ring in a second is half of it between two looks.
    most = min(2.0 * ring_bytes, limit or 2.0 * ring_bytes)
    return int(max(_SPEED_MIN, min(speed, most)))
