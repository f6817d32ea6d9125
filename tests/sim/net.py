"""A simulated network: connections as two directed pipes of bytes between machines.

TLS is not here; its effect, that bytes arrive whole, in order and from who they say, is. Loss shows
as stalls, as it does over TCP; what is cut off is given up after the time that the kernel would.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from host_agent.stream.errors import LinkLost
from host_agent.wire import message
from host_agent.wire.message import Close, Message
from tests.sim.loop import Process, SimLoop
from workers.ingest.tls import Shown

#: Bytes that a sender's and a receiver's kernel hold before `send` waits.
_KERNEL_BYTES = 256 * 1024
#: As long as nothing is acknowledged: the keep-alive and user timeouts of the agent's socket.
_DEAD_SECONDS = 12.0
_CONNECT_SECONDS = 10.0
_SKIPPED_FROM = 128


@dataclass
class Weather:
    """What holds between two machines, in one direction. Seconds, bytes a second, chances."""

    latency: float = 0.002
    bandwidth: float = 50e6
    loss: float = 0.0
    is_cut: bool = False
    is_clogged: bool = False


class Pipe:
    """One direction of a connection. `deliver` runs at the receiver."""

    def __init__(self, net: Network, weather: Weather, receiver: Process) -> None:
        self._net, self._weather, self._receiver = net, weather, receiver
        self._waiting: deque[bytes] = deque()
        self._free_at = 0.0
        self._arrives_at = 0.0
        self.held = 0
        self.held_since: float | None = None
        self.is_broken = False
        self.deliver: Callable[[bytes | None], None] = lambda _data: None
        self.on_room: Callable[[], None] = lambda: None

    @property
    def has_room(self) -> bool:
        return self.held < _KERNEL_BYTES

    def send(self, data: bytes) -> None:
        """Never blocks: who sends asks `has_room` before."""
        self.held += len(data)
        self._net.most_held = max(self._net.most_held, self.held)
        self._waiting.append(data)
        self.push()

    def push(self) -> None:
        """Let go what may leave now."""
        weather = self._weather
        if weather.is_cut or weather.is_clogged:
            if self._waiting and self.held_since is None:
                self.held_since = self._net.loop.time()
                self._net.loop.call_later(_DEAD_SECONDS + 0.1, self._give_up)
            return
        self.held_since = None
        now = self._net.loop.time()
        while self._waiting:
            data = self._waiting.popleft()
            self._free_at = max(self._free_at, now) + len(data) / weather.bandwidth
            delay = weather.latency * self._net.rng.uniform(0.8, 1.2)
            if weather.loss and self._net.rng.random() < weather.loss:
                delay += 0.2 * 2 ** self._net.rng.randrange(4)
                self._net.count("packet_lost")
            self._arrives_at = max(self._arrives_at, self._free_at + delay)
            self._net.loop.call_at(self._arrives_at, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if not self.is_broken:
            self._receiver.call(self._take, data)

    def _take(self, data: bytes) -> None:
        if not self.is_broken:
            self.deliver(data)

    def took(self, count: int) -> None:
        """The receiving program read so many bytes."""
        self.held -= count
        self.on_room()

    def _give_up(self) -> None:
        since = self.held_since
        if since is not None and self._net.loop.time() - since >= _DEAD_SECONDS:
            self._net.count("gave_up_unacknowledged")
            self.on_dead()

    on_dead: Callable[[], None] = staticmethod(lambda: None)


class Network:
    """All machines' connections. `weather(a, b)` is what holds from a to b."""

    def __init__(
        self, loop: SimLoop, rng: random.Random, count: Callable[[str], None], base: Weather
    ) -> None:
        self.loop, self.rng, self.count = loop, rng, count
        self._base = base
        self.weathers: dict[tuple[str, str], Weather] = {}
        self._listeners: dict[str, Callable[[Connection], None]] = {}
        self.connections: dict[Connection, None] = {}
        self.most_held = 0

    def weather(self, source: str, target: str) -> Weather:
        """What holds in this direction; change it, then `changed`."""
        base = self._base
        return self.weathers.setdefault(
            (source, target), Weather(base.latency, base.bandwidth, base.loss)
        )

    def changed(self) -> None:
        """Weather changed: let go what may leave."""
        for connection in list(self.connections):
            for pipe in connection.pipes:
                pipe.push()

    def listen(self, name: str, accept: Callable[[Connection], None] | None) -> None:
        """Who answers at an address; None: nobody."""
        if accept is None:
            self._listeners.pop(name, None)
        else:
            self._listeners[name] = accept

    async def dial(self, client: Process, host: str, address: str, server: str) -> AgentLink:
        """Connect within the time that a real one has; LinkLost."""
        there, back = self.weather(host, server), self.weather(server, host)
        delay = there.latency + back.latency * 2
        for _ in range(3):
            if self.rng.random() < there.loss:
                delay += 1.0
        await asyncio.sleep(delay)
        accept = self._listeners.get(address)
        if there.is_cut or back.is_cut or there.is_clogged or back.is_clogged:
            await asyncio.sleep(_CONNECT_SECONDS - delay)
            raise LinkLost(f"{address} does not answer.", retryable=True)
        if accept is None:
            raise LinkLost(f"{address}: connection refused.", retryable=True)
        connection = Connection(self, client, host, address)
        accept(connection)
        return AgentLink(connection, address)


class Connection:
    """An established connection: `pipes` are client to server, and back."""

    def __init__(self, net: Network, client: Process, host: str, address: str) -> None:
        self.net, self.client, self.host, self.address = net, client, host, address
        self.pipes: list[Pipe] = []
        self.is_over = False
        self.on_over: list[Callable[[], None]] = []
        self.parties: list[Process] = [client]
        net.connections[self] = None

    def complete(self, server: Process, machine: str) -> None:
        """The accepting side is known."""
        net = self.net
        self.parties.append(server)
        self.pipes = [
            Pipe(net, net.weather(self.host, machine), server),
            Pipe(net, net.weather(machine, self.host), self.client),
        ]
        for pipe in self.pipes:
            pipe.on_dead = self.reset
        for party in self.parties:
            party.on_death.append(self.party_died)

    def party_died(self) -> None:
        """A kernel whose program is gone says so, if its words arrive."""
        weathers = [pipe._weather for pipe in self.pipes]
        if any(weather.is_cut or weather.is_clogged for weather in weathers):
            self.net.count("half_open")
            self.net.loop.call_later(_DEAD_SECONDS, self.reset)
        else:
            self.net.loop.call_later(weathers[0].latency, self.reset)

    def reset(self) -> None:
        """Both sides lose it, and what was on its way."""
        if self.is_over:
            return
        self.is_over = True
        self.net.connections.pop(self, None)
        for pipe in self.pipes:
            pipe.is_broken = True
            pipe._waiting.clear()
        for callback in self.on_over:
            callback()
        for party in self.parties:
            if self.party_died in party.on_death:
                party.on_death.remove(self.party_died)

    def close(self, sender: Pipe) -> None:
        """One side closes: the other hears of it after what was sent before."""
        arrives = max(sender._arrives_at, self.net.loop.time() + sender._weather.latency)
        self.net.loop.call_at(arrives + 1e-6, self.reset)


class AgentLink:
    """The agent's side: the stream's port `Link`."""

    def __init__(self, connection: Connection, address: str) -> None:
        self.address = address
        self._connection = connection
        self._out, self._in = connection.pipes
        self._buffer = bytearray()
        self._changed: asyncio.Event = asyncio.Event()
        self._room: asyncio.Event = asyncio.Event()
        self._is_closed = False
        self._in.deliver = self._on_data
        self._out.on_room = self._room.set
        connection.on_over.append(self._on_over)

    def _on_data(self, data: bytes | None) -> None:
        assert data is not None
        self._buffer += data
        self._changed.set()

    def _on_over(self) -> None:
        self._changed.set()
        self._room.set()

    async def send(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Send all bytes; LinkLost."""
        for chunk in chunks:
            while not self._out.has_room:
                self._room.clear()
                self._check()
                await self._room.wait()
            self._check()
            if self._connection.client.is_alive:
                self._out.send(bytes(chunk))

    def _check(self) -> None:
        if self._connection.is_over or self._is_closed:
            raise LinkLost(f"{self.address} ended the connection.", retryable=True)

    async def receive(self) -> Message:
        """The next message that is known; LinkLost or WireError."""
        while True:
            await self._fill(message.HEAD_BYTES)
            number, length = message.parse_head(bytes(self._buffer[: message.HEAD_BYTES]))
            await self._fill(message.HEAD_BYTES + length)
            body = bytes(self._buffer[message.HEAD_BYTES : message.HEAD_BYTES + length])
            del self._buffer[: message.HEAD_BYTES + length]
            self._in.took(message.HEAD_BYTES + length)
            if number < _SKIPPED_FROM or number == message.MessageType.FETCHED:
                found = message.parse_body(number, body)
                if isinstance(found, Close):
                    self._connection.net.count(f"close_{found.code}")
                return found

    async def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            self._check()
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End it at once. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            if self._connection.client.is_alive:
                self._connection.close(self._out)


class ServerTransport(asyncio.Transport):
    """The ingest's side, as asyncio would give it to a BufferedProtocol after the handshake."""

    def __init__(self, connection: Connection, process: Process, certificate: str) -> None:
        super().__init__()
        self._connection, self._process = connection, process
        self._in, self._out = connection.pipes
        self._certificate = certificate
        self._buffer: deque[bytes] = deque()
        self._protocol: Any = None
        self._is_paused = False
        self._is_closing = False
        self._is_lost = False
        self._in.deliver = self._on_data
        connection.on_over.append(lambda: process.call(self._lose))

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        """Give the protocol its transport, and what came meanwhile."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._feed()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The one thing that is asked for: who the certificate names."""
        return Shown(message.ALPN, (self._certificate,)) if name == "shown" else default

    def _on_data(self, data: bytes | None) -> None:
        assert data is not None
        self._buffer.append(data)
        self._feed()

    def _feed(self) -> None:
        while self._buffer and self._protocol and not self._is_paused and not self._is_lost:
            data = self._buffer[0]
            into = self._protocol.get_buffer(-1)
            count = min(len(into), len(data))
            into[:count] = data[:count]
            if count == len(data):
                self._buffer.popleft()
            else:
                self._buffer[0] = data[count:]
            self._in.took(count)
            self._protocol.buffer_updated(count)

    def pause_reading(self) -> None:
        """As asyncio's."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """As asyncio's."""
        if self._is_paused:
            self._is_paused = False
            self._process.call(self._feed)

    def write(self, data: Any) -> None:
        """As asyncio's: never blocks."""
        if self._process.is_alive and not self._connection.is_over:
            self._out.send(bytes(data))

    def get_write_buffer_size(self) -> int:
        """What the other side has not read."""
        return max(0, self._out.held - _KERNEL_BYTES)

    def is_closing(self) -> bool:
        """As asyncio's."""
        return self._is_closing

    def abort(self) -> None:
        """As asyncio's."""
        if not self._is_closing:
            self._is_closing = True
            if self._process.is_alive:
                self._connection.close(self._out)
            self._process.call(self._lose)

    close = abort

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._is_closing = True
            if self._protocol is not None:
                self._protocol.connection_lost(None)
