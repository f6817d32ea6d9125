"""What the parts of a stream share: settings, means, figures, and the open ring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from host_agent.stream.errors import RingChanged
from host_agent.stream.ledger import Freed
from host_agent.stream.pace import TokenBucket
from host_agent.stream.ports import Clock, DataKey, Offload, Random, RingOpened, Tap, TapState
from host_agent.stream.progress import Counters, Rate, RecoveryPoint, SyncProgress, Tally, Waits
from host_agent.stream.ring import RingFile
from host_agent.stream.signals import Signal
from host_agent.stream.spool import Spool
from host_agent.wire import limits
from host_agent.wire.names import Identity
from host_agent.wire.record import Records, State

#: Records of 4 KiB that fill a frame.
FRAME_RECORDS = 1024

Watch = Callable[[Records, bytes], None]
"""Is shown each batch: records and their payloads in order. Runs beside the loop."""

Unwrap = Callable[[bytes, bytes], bytes]
"""The data key of a generation from its key object; WrongKey, BadKeyFile."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where a stream may put sealed frames while the line is down, and how many bytes of them.

    It does so while the ring is fuller than `begin_at`, down to `end_at` (shares).
    """

    path: Path
    bytes: int
    begin_at: float = 0.5
    end_at: float = 0.25


@dataclass(frozen=True)
class StreamSettings:
    """What one stream is told. Seconds and bytes."""

    identity: Identity
    software: str
    commit_seconds: float = 1.0
    frame_bytes_max: int = limits.FRAME_PLAIN_BYTES_MAX
    silence_seconds: float = 12.0
    state_seconds_max: float = 0.25
    idle_wait_ms: int = 10_000
    sync_chunk_bytes: int = 4 * limits.MIB
    sync_ahead_bytes: int = 8 * limits.MIB
    spool: SpoolSettings | None = None

    @property
    def linger_seconds(self) -> float:
        """How long the first records of a frame wait for company: 4 % of the commit interval."""
        return 0.04 * self.commit_seconds


@dataclass(frozen=True)
class Means:
    """Everything from outside that is not the tap, the network or the keys."""

    clock: Clock
    random: Random
    offload: Offload


class Buckets:
    """The limits of a stream: what guests write now, what a sync sends, what ingest asks for, and
    what a comparison reads of disks."""

    def __init__(self, replication: float | None, sync: float | None, now: float) -> None:
        self.replication = TokenBucket(replication, now)
        self.sync = TokenBucket(sync, now)
        self.throttle = TokenBucket(None, now)
        self.scan = TokenBucket(None, now)


class Figures:
    """What is counted and measured, over all connections of a stream."""

    def __init__(self, clock: Clock) -> None:
        now = clock.monotonic()
        self.counters = Counters()
        self.tally = Tally(self.counters)
        self.recovery = RecoveryPoint()
        self.waits = Waits(now)
        self.sync = SyncProgress()
        self.wire_rate = Rate(now)
        self.plain_rate = Rate(now)


@dataclass(frozen=True)
class Shared:
    """What outlives a connection. `on_stored` hears of each newly stored position, `on_healthy`
    of a connection that lasts.

    `watch` is shown what is about to be sealed; `unwrap` opens a generation's key object.
    """

    settings: StreamSettings
    means: Means
    buckets: Buckets
    figures: Figures
    on_stored: Callable[[int], None]
    on_healthy: Callable[[], None]
    unwrap: Unwrap
    watch: Watch | None = None


@dataclass
class OpenRing:
    """A ring that this agent has open, over any number of connections."""

    tap: Tap
    file: RingFile
    opened: RingOpened
    key: DataKey
    state: TapState
    freed: int
    anchor: int
    anchor_hash: bytes
    #: What the tap has confirmed of `freed`: a connection may end while it is being told.
    confirmed: int = 0
    changed: Signal = field(default_factory=Signal)
    spool: Spool | None = None
    #: Records that make a frame worth sending without waiting for company.
    frame_records: int = FRAME_RECORDS
    #: Held by who reads ring or spool for the line, and by who moves from one to the other.
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.confirmed = self.freed

    @property
    def generation(self) -> bytes:
        """The generation that the ring is of."""
        return self.opened.generation

    @property
    def held(self) -> int:
        """The position before the first that this host still has, in the spool or in the ring."""
        first = self.spool.first if self.spool is not None else 0
        return first - 1 if first else self.freed

    @property
    def wants_sync(self) -> bool:
        """Whether there is something that only a sync can bring over."""
        return self.state.state in (State.DIRTY, State.SYNCING)

    def see(self, state: TapState) -> None:
        """The tap said how it is; answers may overtake each other. RingChanged."""
        if state.generation != self.generation:
            raise RingChanged("The tap began a new generation.")
        if state.time < self.state.time or state.head < self.state.head:
            return
        is_news = (state.head, state.state) != (self.state.head, self.state.state)
        self.state = state
        if is_news:
            self.changed.notify()

    def note_freed(self, freed: Freed) -> None:
        """Remember the newest anchor: entries before it are gone once the tap hears of it."""
        if freed.seq > self.freed:
            self.freed = freed.seq
            self.anchor, self.anchor_hash = freed.anchor, freed.anchor_hash
