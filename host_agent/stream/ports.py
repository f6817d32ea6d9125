"""What a stream needs from outside: the tap, the network, keys, threads and time, as interfaces.

The agent gives it the real ones, a simulator its own. Nothing in this room reads a clock, a random
source or a socket that did not come in through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from host_agent.stream.ledger import Freed
from host_agent.wire.message import Message
from host_agent.wire.record import State

Result = TypeVar("Result")


@dataclass(frozen=True)
class TapState:
    """What the tap says of a stream at one instant. `time` in nanoseconds UTC by the tap."""

    generation: bytes
    head: int
    state: State
    cause: str | None
    time: int


@dataclass(frozen=True)
class RingOpened:
    """A ring as the tap hands it over. The descriptor is the receiver's to close."""

    descriptor: int
    generation: bytes
    predecessor: bytes | None
    head: int
    freed: int
    payload_head: int
    payload_freed: int
    anchor: int
    anchor_hash: bytes
    state: State
    cause: str | None


@dataclass(frozen=True)
class SyncStep:
    """What one `sync` request did. Bytes of disks; `busy`: the ring had no room."""

    state: State
    read: int
    remaining: int
    total: int
    busy: bool
    begin: int = 0


@dataclass(frozen=True)
class ToRead:
    """What is to be read of a disk: (offset, length) in bytes; `next`: where to ask on."""

    begin: int
    ranges: list[tuple[int, int]]
    next: int | None


@dataclass(frozen=True)
class Look:
    """A disk to read from. The descriptor is the receiver's to close. `size` in bytes."""

    descriptor: int
    size: int


class Tap(Protocol):
    """One stream's control connection. Every call raises TapGone once the tap is gone."""

    async def open(self) -> RingOpened: ...
    async def wait(self, after: int, milliseconds: int) -> TapState: ...
    async def state(self) -> TapState: ...
    async def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None: ...
    async def sync(self, limit: int) -> SyncStep: ...
    async def mark(self, body: dict[str, object]) -> tuple[int, int]: ...
    async def new_generation(self, cause: str) -> bytes: ...
    async def close(self) -> None: ...


@runtime_checkable
class ComparingTap(Protocol):
    """What a tap offers besides, where its disks can be compared with one journal."""

    async def sync_before(self, limit: int, before: tuple[int, int]) -> SyncStep: ...
    async def to_read(self, disk: str, start: int) -> ToRead: ...
    async def look(self, disk: str) -> Look: ...
    async def same(
        self, generation: bytes, begin: int, disk: str, ranges: list[tuple[int, int]]
    ) -> None: ...
    async def free_spooled(self, freed: Freed, stored: int) -> None: ...
    async def force(self, disk: str | None) -> SyncStep: ...
    async def follow(self, cause: str, predecessor: bytes) -> bytes: ...


class Link(Protocol):
    """One connection to an ingest. Raises LinkLost, or WireError for bytes that are no protocol."""

    address: str

    async def send(self, chunks: Sequence[bytes | memoryview]) -> None: ...
    async def receive(self) -> Message: ...
    async def close(self) -> None: ...


class Keys(Protocol):
    """Data keys of one stream, kept over restarts."""

    def find(self, generation: bytes) -> DataKey | None: ...
    def make(self, generation: bytes) -> DataKey: ...
    def keep_only(self, generation: bytes) -> None: ...
    def unwrap(self, generation: bytes, wrapped: bytes) -> bytes: ...


@dataclass(frozen=True)
class DataKey:
    """A generation's key, and the wrapped object that the journal keeps. Never shown."""

    key: bytes
    wrapped: bytes

    def __repr__(self) -> str:
        return "DataKey(...)"


class Clock(Protocol):
    """Seconds that only go forward, and the wall's nanoseconds UTC to compare with the tap's."""

    def monotonic(self) -> float: ...
    def wall_ns(self) -> int: ...


class Random(Protocol):
    """Salts, and jitter from 0 to 1."""

    def bytes(self, count: int) -> bytes: ...
    def fraction(self) -> float: ...


class Offload(Protocol):
    """Runs what takes milliseconds of processor time beside the loop, one call at a time."""

    async def __call__(self, function: Callable[[], Result]) -> Result: ...


class ConnectTap(Protocol):
    """Connects to the tap of one stream; TapGone if there is none, NotAttached if no disk is."""

    async def __call__(self) -> Tap: ...


class Dial(Protocol):
    """Connects to an ingest by its place in the configured list; LinkLost or CertificateRefused."""

    async def __call__(self, address: int) -> Link: ...
