"""What a stream does next: pure decisions over WELCOME, CLOSE and failures.

The same rules run in the agent and in a simulator. Nothing here performs anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from host_agent.stream.errors import (
    CertificateRefused,
    DataKeyMissing,
    JournalDiffers,
    NotAttached,
    PeerClosed,
    RingChanged,
    RingDamaged,
    StreamTaken,
    TapGone,
)
from host_agent.stream.pace import Backoff
from host_agent.stream.ports import Random
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.message import VERSION, Close, Welcome
from host_agent.wire.record import State
from host_agent.wire.tapctl import TapRefused

#: A connection that we gave up before WELCOME may still claim an epoch, and fence us once.
OWN_FENCE_SECONDS = 60.0
#: New generations that a stream may begin by itself in an hour before a person has to look.
RENEWALS_MAX = 3
RENEWALS_SECONDS = 3600.0
#: Failures in a row before a passing fault is shown as an alert.
FAILURES_BEFORE_ALERT = 3

_GENESIS = bytes(32)
#: Somebody else has the stream: to go on would be a fight over one chain.
_TAKEN = {
    "fenced": "Another session of this host's identity took the stream over.",
    "replaced": "Another session of this host's identity took the stream over.",
    "generation_ended": "The journal went on with another generation than this host's.",
    "equivocation": "Ingest was given two different contents for the same positions.",
}
_TAKEN_HINT = (
    "Make sure that only one agent with this identity runs (a copied state directory or a cloned "
    "host does this), then run: holdfast-agent resync GROUP"
)


@dataclass(frozen=True)
class Alert:
    """Something that a person should know. `stops`: the stream waits until somebody acts."""

    code: str
    message: str
    hint: str
    stops: bool

    @classmethod
    def of(cls, error: HoldfastError, *, stops: bool = False) -> Alert:
        """The alert that shows an error."""
        return cls(error.code, error.message, error.hint, stops)


@dataclass(frozen=True)
class RingPosition:
    """What the ring can still send: positions after `freed` up to `head`."""

    generation: bytes
    freed: int
    head: int


@dataclass(frozen=True)
class Resume:
    """Send from `first`. If `verify` is given, our record hash at first - 1 must equal it."""

    first: int
    verify: bytes | None
    state: State


def judge_welcome(welcome: Welcome, ring: RingPosition) -> Resume:
    """Where to go on; JournalDiffers if the ring cannot continue the journal; WireError."""
    if welcome.version != VERSION:
        raise WireError(
            f"Ingest speaks version {welcome.version}, this agent {VERSION}.",
            hint="Update the older of the two.",
        )
    if welcome.begin == "new_generation":
        if ring.freed:
            raise JournalDiffers(
                f"The journal does not know this generation, of which {ring.freed} was stored."
            )
        return Resume(1, None, State.SYNCING)
    if welcome.generation != ring.generation.hex():
        raise WireError("Ingest wants to resume another generation than this ring's.")
    if welcome.stored < ring.freed:
        raise JournalDiffers(
            f"The journal ends at {welcome.stored}, but {ring.freed} had been stored."
        )
    if welcome.stored > ring.head:
        raise JournalDiffers(
            f"The journal reaches {welcome.stored}, but the ring only {ring.head}."
        )
    return Resume(welcome.stored + 1, _hash(welcome), _state(welcome))


def _hash(welcome: Welcome) -> bytes:
    if welcome.stored == 0:
        return _GENESIS
    try:
        value = bytes.fromhex(welcome.record_hash)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise WireError("Ingest sent a record hash of the wrong length.")
    return value


def _state(welcome: Welcome) -> State:
    # A generation begins inside a sync; the records that are sent say what follows.
    return State.RECORDING if welcome.state == State.RECORDING else State.SYNCING


@dataclass(frozen=True)
class Retry:
    """Connect again after `seconds`, to the address numbered `address`."""

    seconds: float
    address: int


@dataclass(frozen=True)
class Reopen:
    """Open the ring again after `seconds`: the tap went away or changed its generation."""

    seconds: float


@dataclass(frozen=True)
class Renew:
    """Begin a new generation with this cause, then connect again."""

    cause: str


@dataclass(frozen=True)
class Stop:
    """Do nothing more until a person acts."""


Action = Retry | Reopen | Renew | Stop


class Decider:
    """Turns failures into actions. One for each stream, for as long as the agent runs."""

    def __init__(self, random: Random, addresses: int) -> None:
        assert addresses > 0
        self._addresses = addresses
        self._address = 0
        self._link_backoff = Backoff(random)
        self._tap_backoff = Backoff(random, longest=5.0)
        self._unanswered = False
        self._abandoned_at: float | None = None
        self._renewals: deque[float] = deque(maxlen=RENEWALS_MAX)
        self.alert: Alert | None = None

    @property
    def address(self) -> int:
        """Which address to dial now."""
        return self._address

    @property
    def failures(self) -> int:
        """Failed connections in a row."""
        return self._link_backoff.tries

    def on_hello(self) -> None:
        """HELLO leaves: from here on ingest may claim an epoch for us."""
        self._unanswered = True

    def on_welcome(self) -> None:
        """Ingest answered: that claim is the session that we have."""
        self._unanswered = False

    def on_opened(self) -> None:
        """The ring is open."""
        self._tap_backoff.reset()

    def on_success(self) -> None:
        """Something was stored, or a connection lasts: what went wrong before is over."""
        self._link_backoff.reset()
        if self.alert is not None and not self.alert.stops:
            self.alert = None

    def release(self) -> None:
        """A person acted: forget why the stream stopped."""
        self.alert = None
        self._link_backoff.reset()
        self._renewals.clear()

    def on_failure(self, error: HoldfastError, now: float) -> Action:
        """What follows from the end of a connection or of a ring."""
        if self._unanswered and not isinstance(error, PeerClosed):
            self._abandoned_at = now
        self._unanswered = False
        if isinstance(error, PeerClosed):
            return self._on_close(error, now)
        if isinstance(error, JournalDiffers | DataKeyMissing):
            return self._renew(error, "journal_differs", now)
        if isinstance(error, RingDamaged):
            return self._renew(error, "ring_lost", now)
        if isinstance(error, StreamTaken):
            return self._stop(error)
        is_unheld = isinstance(error, TapRefused) and error.code == "not_open"
        if is_unheld or isinstance(error, TapGone | RingChanged | NotAttached):
            return Reopen(self._tap_backoff.next())
        return self._retry(error)

    def _stop(self, error: HoldfastError) -> Stop:
        self.alert = Alert.of(error, stops=True)
        return Stop()

    def _on_close(self, error: PeerClosed, now: float) -> Action:
        close = error.close
        if close.code in ("fenced", "replaced") and self._is_own_fence(now):
            self._abandoned_at = None
            return self._retry(error)
        if close.code in _TAKEN:
            self.alert = Alert(close.code, _TAKEN[close.code], _TAKEN_HINT, stops=True)
            return Stop()
        return self._retry(error, close)

    def _is_own_fence(self, now: float) -> bool:
        return self._abandoned_at is not None and now - self._abandoned_at <= OWN_FENCE_SECONDS

    def _retry(self, error: HoldfastError, close: Close | None = None) -> Retry:
        wait = close.retry_seconds if close is not None and close.retry_seconds else 0.0
        # What works again after a moment is tried at the same address first.
        if self._link_backoff.tries:
            self._address = (self._address + 1) % self._addresses
        seconds = self._link_backoff.next(min(wait, 60.0))
        needs_help = isinstance(error, CertificateRefused) or (
            close is not None and close.retry_seconds is None
        )
        if needs_help or self._link_backoff.tries >= FAILURES_BEFORE_ALERT:
            self.alert = Alert.of(error)
        return Retry(seconds, self._address)

    def _renew(self, error: HoldfastError, cause: str, now: float) -> Action:
        if len(self._renewals) == RENEWALS_MAX and now - self._renewals[0] < RENEWALS_SECONDS:
            hint = "Look for a second agent with this identity, or a journal that loses objects."
            self.alert = Alert(error.code, error.message, hint, stops=True)
            return Stop()
        self._renewals.append(now)
        self.alert = Alert.of(error)
        return Renew(cause)
