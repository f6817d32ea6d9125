"""The listener: who may connect, how many at once, and who has which stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from OpenSSL import SSL

from host_agent.wire.names import Identity
from host_agent.wire.tls import reason_of
from workers.ingest.config import LimitsConfig
from workers.ingest.connection import Connection
from workers.ingest.decide import Peer, Rules, authorise_peer, check_validity, may_write
from workers.ingest.errors import CloseCode, SessionEnded
from workers.ingest.facts import StreamFacts
from workers.ingest.quota import shares
from workers.ingest.session import Session
from workers.ingest.tls import peer_of
from workers.ingest.tools import Tools
from workers.ingest.transport import TlsTransport

_HANDSHAKE_SECONDS_MAX = 5.0
#: How long a newer session waits for the older one's last commit.
_TAKE_OVER_SECONDS_MAX = 6.0
#: After a session its connection has so long to go.
_LEAVE_SECONDS_MAX = 5.0
_BACKLOG = 128
#: Streams whose facts are kept after they left. The oldest go first.
_STREAMS_MAX = 20_000


@dataclass
class ServerCounters:
    """What the door saw."""

    accepted: int = 0
    refused_full: int = 0
    refused_handshake: int = 0
    refused_peer: int = 0
    put_out: int = 0
    defects: int = 0


@dataclass
class Streams:
    """Who has which stream in this process, and what is known of each."""

    live: dict[Identity, Session] = field(default_factory=dict)
    facts: dict[Identity, StreamFacts] = field(default_factory=dict)

    async def take_over(self, identity: Identity, session: Session) -> StreamFacts:
        """Enter this session; end the stream's older one and wait for it, within bounds."""
        older = self.live.get(identity)
        self.live[identity] = session
        if older is not None and older is not session:
            older.end(SessionEnded(CloseCode.REPLACED, "A newer session of this stream has begun."))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TAKE_OVER_SECONDS_MAX):
                    await older.finished.wait()
        if self.live.get(identity) is not session:
            raise SessionEnded(CloseCode.REPLACED, "A newer session of this stream has begun.")
        if identity not in self.facts and len(self.facts) >= _STREAMS_MAX:
            self.facts.pop(next(name for name in self.facts if name not in self.live))
        return self.facts.setdefault(identity, StreamFacts(identity))

    def leave(self, session: Session) -> None:
        """The session is over."""
        for identity in [name for name, live in self.live.items() if live is session]:
            del self.live[identity]


class Server:
    """Accepts connections until it is stopped."""

    def __init__(self, context: SSL.Context, limits: LimitsConfig, tools: Tools) -> None:
        self._context = context
        self._limits = limits
        self._tools = tools
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        # Dictionaries, not sets: all are told something in the order in which they came.
        self._serving: dict[asyncio.Task[None], None] = {}
        self._handshakes = 0
        self.sessions: dict[Session, None] = {}
        self.streams = Streams()
        self.counters = ServerCounters()

    @property
    def connections(self) -> int:
        """Connections of any state."""
        return len(self._serving)

    def all_facts(self) -> Iterable[StreamFacts]:
        """Every stream that was seen."""
        return self.streams.facts.values()

    def start(self, address: tuple[str, int]) -> tuple[str, int]:
        """Listen; returns the address with the port that was taken. OSError."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))
        host, port = listener.getsockname()[:2]
        return str(host), int(port)

    async def stop(self) -> None:
        """Take nobody new; let every session commit what it has, and say so."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listener is not None:
            self._listener.close()
        for session in list(self.sessions):
            session.end(
                SessionEnded(CloseCode.STOPPING, "This ingest is stopping.", retry_seconds=1.0)
            )
        waiting = [session.finished.wait() for session in self.sessions]
        timeout = self._tools.timing.flush_seconds_max + 0.3
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await asyncio.gather(*waiting)
        await asyncio.sleep(0.05)  # the last CLOSE leaves
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, or the client was gone already: others may still come in.
                self._tools.log.warning("accept_failed", error=error.strerror)
                await asyncio.sleep(0.1)
                continue
            self.take(connected, f"{address[0]}:{address[1]}")

    def take(self, connected: socket.socket, address: str) -> None:
        """Serve a connection of which nothing was read yet, if there is room for one more."""
        full = len(self._serving) >= self._limits.connections_max
        if full or self._handshakes >= self._limits.handshakes_max:
            self.counters.refused_full += 1
            connected.close()
            return
        self._handshakes += 1  # at once: many may be taken before any task runs
        task = asyncio.create_task(self._serve(connected, address))
        self._serving[task] = None
        task.add_done_callback(self._serving.pop)

    def change(self, rules: Rules, limits: LimitsConfig) -> None:
        """Other rules hold from now on: whom they no longer let in is put out at once."""
        self._tools.rules, self._limits = rules, limits
        self._tools.quota.set_rate(limits.bytes_per_second, self._tools.clock.monotonic())
        for session in list(self.sessions):
            identity = session.identity
            if not may_write(session.peer, identity.group if identity else None, rules):
                self.counters.put_out += 1
                session.put_out()

    def share_quota(self, seconds: float) -> None:
        """Tell every session its part of the tenant's quota, by what came in these seconds."""
        rate = self._tools.quota.rate
        writing = [session for session in self.sessions if session.is_writing]
        sent = [session.sent_lately(seconds) for session in writing]
        parts = [0.0] * len(writing) if rate is None else shares(rate, sent)
        for session, part in zip(writing, parts, strict=True):
            session.throttle(round(part))

    def renew(self, context: SSL.Context) -> None:
        """Another certificate for the connections to come."""
        self._context = context

    @property
    def sessions_late(self) -> int:
        """Sessions whose certificate has run out: accepted within the grace."""
        now = self._tools.clock.wall_ns() / 1e9
        return sum(session.peer.valid_to < now for session in self.sessions)

    async def _serve(self, connected: socket.socket, address: str) -> None:
        session: list[Session] = []

        def start(connection: Connection, transport: asyncio.Transport) -> Session | None:
            made = self._admit(connection, transport, address)
            if made is not None:
                session.append(made)
            return made

        connection = Connection(start)
        transport = await self._handshake(connected, connection, address)
        if transport is None or not session:
            return
        try:
            await self._live(session[0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS_MAX):
                    await connection.lost.wait()
        finally:
            transport.abort()

    async def _handshake(
        self, connected: socket.socket, connection: Connection, address: str
    ) -> asyncio.Transport | None:
        transport = TlsTransport(self._context, connected)
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS_MAX):
                await transport.handshake()
        except (OSError, SSL.Error) as error:
            self.counters.refused_handshake += 1
            reason = reason_of(error)
            self._tools.log.warning("handshake_failed", address=address, reason=reason)
            transport.abort()
            return None
        except BaseException:
            transport.abort()
            raise
        finally:
            self._handshakes -= 1
        transport.begin(connection)
        return transport

    def _admit(
        self, connection: Connection, transport: asyncio.Transport, address: str
    ) -> Session | None:
        """A session for a peer that may have one; None refuses it without a word."""
        try:
            peer: Peer = peer_of(transport.get_extra_info("shown"), address)
            authorise_peer(peer, self._tools.rules)
            late = check_validity(peer, self._tools.rules, self._tools.clock.wall_ns() / 1e9)
        except SessionEnded as refused:
            self.counters.refused_peer += 1
            self._tools.log.warning("peer_refused", address=address, reason=refused.message)
            return None
        self.counters.accepted += 1
        if late:
            self._tools.log.warning(
                "certificate_late", host=peer.host, address=address, seconds=late
            )
        return Session(peer, connection, self._tools, self.streams)

    async def _live(self, session: Session) -> None:
        self.sessions[session] = None
        try:
            await session.run()
        except Exception as error:  # noqa: BLE001 - a defect in one session must not end the others
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            at = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else None
            self.counters.defects += 1
            self._tools.log.warning("defect", error=type(error).__name__, message=error, at=at)
        finally:
            self.sessions.pop(session, None)
            self.streams.leave(session)
