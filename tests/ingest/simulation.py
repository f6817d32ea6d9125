"""Sessions in one event loop whose time jumps, over a store that misbehaves from one seed.

The product's own code runs: sessions, committers, chain writers. Only the clock, the randomness,
the line, the threads and the store are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import selectors
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from host_agent.wire.message import (
    HEAD_BYTES,
    Close,
    Message,
    Probe,
    Probed,
    Stored,
    Welcome,
    parse_body,
    parse_head,
)
from host_agent.wire.names import chain_name
from host_agent.wire.pieces import Content
from host_agent.wire.record import State
from host_agent.wire.segment import parse_trailer
from tests.model.store import MemoryStore
from tests.servers.agent import Source, make_hello
from workers.ingest.batch import ReceivedFrame
from workers.ingest.budget import Budget
from workers.ingest.decide import Peer, Rules
from workers.ingest.log import Log
from workers.ingest.parser import Taking
from workers.ingest.server import Streams
from workers.ingest.session import Session
from workers.ingest.tools import Timing, Tools
from workers.storage.errors import OutcomeUnknown, StoreUnavailable
from workers.storage.port import Created

_Result = TypeVar("_Result")
#: No simulation here lasts longer; one that does is stuck.
_SECONDS_MAX = 3600.0
_START_NS = 1_767_225_600_000_000_000


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: tells the loop how long it would have waited."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self._jump(max(0.0, timeout))
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting costs no time."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def _advance(self, seconds: float) -> None:
        if seconds:  # asyncio takes timers a nanosecond early; time has to get there all the same
            self._virtual += seconds + 1e-9
        assert self._virtual < _SECONDS_MAX, "it never ends"

    def time(self) -> float:
        return self._virtual


async def _cancel_the_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def simulate(main: Callable[[], Any]) -> Any:
    """Run a coroutine function to its end in virtual time."""
    with contextlib.closing(VirtualLoop()) as loop:
        try:
            return loop.run_until_complete(main())
        finally:
            loop.run_until_complete(_cancel_the_rest())


class VirtualClock:
    """Both times from the loop's."""

    def wall_ns(self) -> int:
        return _START_NS + int(self.monotonic() * 1e9)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class Trouble:
    """How often the store does what: chances from 0 to 1."""

    late: float = 0.0
    answer_lost: float = 0.0
    away: float = 0.0
    seconds_max: float = 0.3


class SimulatedStore(MemoryStore):
    """Creates may be refused, carried out unheard, or carried out after their caller gave up."""

    def __init__(self, rng: random.Random, trouble: Trouble) -> None:
        super().__init__()
        self._rng = rng
        self._trouble = trouble
        self.late = 0

    def put_if_absent(self, name: str, data: Content) -> Created:
        draw, trouble = self._rng.random(), self._trouble
        if draw < trouble.late:
            self.late += 1
            loop = asyncio.get_running_loop()
            loop.call_later(self._rng.uniform(0, 5), super().put_if_absent, name, bytes(data))
            raise OutcomeUnknown("no answer yet")
        if draw < trouble.late + trouble.answer_lost:
            super().put_if_absent(name, data)
            raise OutcomeUnknown("the answer was lost")
        if draw < trouble.late + trouble.answer_lost + trouble.away:
            raise StoreUnavailable("away")
        return super().put_if_absent(name, data)


@dataclass
class World:
    """What all sessions of a simulation share."""

    rng: random.Random
    trouble: Trouble = field(default_factory=Trouble)
    timing: Timing = field(default_factory=Timing)

    def __post_init__(self) -> None:
        self.store = SimulatedStore(self.rng, self.trouble)
        self.log = io.StringIO()
        self.tasks: set[asyncio.Task[None]] = set()

    async def offload(self, work: Callable[[], _Result]) -> _Result:
        """A thread that takes a while before and after what it does."""
        await asyncio.sleep(self.rng.uniform(0, self.trouble.seconds_max))
        try:
            return work()
        finally:
            await asyncio.sleep(self.rng.uniform(0, self.trouble.seconds_max))

    def tools(self) -> Tools:
        clock = VirtualClock()
        return Tools(
            rules=Rules("acme", None, 0.2, 5.0),
            timing=self.timing,
            store=self.store,
            offload=self.offload,
            clock=clock,
            token=self.rng.randbytes,
            budget=Budget(1 << 30),
            log=Log(clock.wall_ns, self.log),
        )

    def start(self, session: Session) -> None:
        """Let it live; a defect fails the test."""
        task = asyncio.get_running_loop().create_task(session.run())
        self.tasks.add(task)

    async def end(self) -> None:
        """Wait until everybody has gone; raises defects."""
        await asyncio.gather(*self.tasks)
        await asyncio.sleep(10)  # what is late arrives


class SimulatedLine:
    """The agent's end of a session, and ingest's line to it."""

    def __init__(self, world: World, streams: Streams, source: Source) -> None:
        self._loop = asyncio.get_running_loop()
        self._world = world
        self.source = source
        self.heard: list[tuple[float, Message]] = []
        self.changed = asyncio.Event()
        self.closed = False
        self.paused = False
        self.answers = True
        self.sealer = source.sealer(world.rng.randbytes(32))
        peer = Peer("acme", source.identity.host, "simulated")
        self.session = Session(peer, self, world.tools(), streams)
        world.start(self.session)

    # --- ingest's side

    def write(self, data: bytes) -> None:
        while data:
            number, length = parse_head(data[:HEAD_BYTES])
            body, data = data[HEAD_BYTES : HEAD_BYTES + length], data[HEAD_BYTES + length :]
            self._hear(parse_body(number, body))

    def unsent(self) -> int:
        return 0

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    def _hear(self, message: Message) -> None:
        self.heard.append((self._loop.time(), message))
        self.changed.set()
        if isinstance(message, Probe) and self.answers:
            self._loop.call_soon(self._answer, message.probe)

    def _answer(self, probe: int) -> None:
        generation = self.source.generation.hex()
        self.say(Probed(probe, generation, self.source.head, int(State.RECORDING)))

    # --- the agent's side

    def of(self, kind: type[_Result]) -> list[_Result]:
        """Messages of a kind, in order."""
        return [message for _, message in self.heard if isinstance(message, kind)]

    def say(self, message: Message) -> None:
        """Send a message, as long as it is read."""
        if not self.closed and not self.paused:
            self.session.on_heard()
            self.session.on_message(message)

    async def hello(self) -> Welcome | None:
        """HELLO and WELCOME; None if there was none."""
        self.say(make_hello(self.source))
        while not self.of(Welcome) and not self.closed:
            self.changed.clear()
            await self.changed.wait()
        return next(iter(self.of(Welcome)), None)

    def send(self, first: int, last: int) -> None:
        """One frame."""
        frame = self.source.seal(self.sealer, first, last)
        parts = memoryview(frame.index + frame.payload)
        self.session.on_heard()
        taking = self.session.on_frame_header(frame.header, frame.header.length + len(parts))
        assert taking is Taking.TAKE
        self.session.on_frame(ReceivedFrame(frame.header, frame.header_bytes, parts))

    def hang_up(self) -> None:
        """As a broken connection looks."""
        self.paused = True
        self.session.on_lost()

    @property
    def close_code(self) -> str | None:
        """Why ingest ended it."""
        return next((message.code for message in self.of(Close)), None)


def check_acknowledged(world: World, line: SimulatedLine) -> Iterator[Stored]:
    """Each STORED must be true of the store at this moment."""
    for stored in line.of(Stored):
        data = world.store.objects.get(chain_name(line.source.identity, stored.place))
        assert data is not None, f"place {stored.place} was acknowledged and is not there"
        info = parse_trailer(data)
        assert (info.last_seq, info.epoch) == (stored.seq, stored.epoch)
        assert info.record_hash.hex() == stored.record_hash
        assert info.record_hash == line.source.hashes[stored.seq]
        yield stored
