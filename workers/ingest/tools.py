"""What the sessions of a process share, and the ports between a session and what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from host_agent.wire.names import Identity
from workers.ingest.budget import Budget
from workers.ingest.decide import Rules
from workers.ingest.facts import StreamFacts
from workers.ingest.log import Log
from workers.ingest.ports import Clock, Offload, Token
from workers.ingest.quota import Quota
from workers.storage.port import ObjectStore

if TYPE_CHECKING:
    from workers.ingest.session import Session


@dataclass(frozen=True)
class Timing:
    """Seconds. What a session waits for, and how long."""

    hello_seconds_max: float = 5.0
    idle_seconds_max: float = 30.0
    probe_seconds: float = 1.0
    flush_seconds_max: float = 4.5
    #: A checkpoint may ask for a commit at once, but each is a request to the store.
    commit_gap_seconds: float = 0.05
    #: Each session makes one small object. So many at once, then one in so many seconds.
    claims_at_once_max: int = 64
    claim_seconds: float = 1.0


@dataclass
class Tools:
    """What all sessions of a process share. `rules` alone is ever changed."""

    rules: Rules
    timing: Timing
    store: ObjectStore
    offload: Offload
    clock: Clock
    token: Token
    budget: Budget
    log: Log
    quota: Quota = field(default_factory=Quota)


class Line(Protocol):
    """The connection, as far as a session uses it."""

    def write(self, data: bytes) -> None:
        """Send; never blocks."""
        ...

    def unsent(self) -> int:
        """Bytes written that have not left yet."""
        ...

    def pause(self) -> None:
        """Read nothing more for now."""
        ...

    def resume(self) -> None:
        """Take the frame that waits, and read on."""
        ...

    def close(self) -> None:
        """Send what is left, then end. What still comes in is thrown away."""
        ...


class Registry(Protocol):
    """Who has which stream in this process."""

    async def take_over(self, identity: Identity, session: Session) -> StreamFacts:
        """Enter this session; end the stream's older one and wait for it, within bounds."""
        ...
