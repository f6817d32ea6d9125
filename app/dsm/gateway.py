"""Where hosts' connections end. It knows who comes in and passes on what they say to the owner.

A takeover moves the owner, not the hosts: a connection stays, and its new owner is told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.http11 import Request, Response

from app.database.sessions import Database
from app.datanodes.gateway import NodeGateway, NodeRefused
from app.dsm.assignments import Place
from app.dsm.door import NotAdmitted, Peer, admit_host, read_leaf, uri_of
from app.dsm.links import Owner
from app.dsm.metrics import Metrics
from app.dsm.outbox import Outbox, until_first
from app.dsm.twins import Twins
from app.kit.pace import Pace
from app.kit.problems import Problem
from host_agent.wire import control, limits
from host_agent.wire.control import Hello
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.names import datanode_san

#: Whoever is not let in is counted; a line for each would be a way to fill a disk.
_QUIET = logging.getLogger("holdfast.dsm.websockets")
_QUIET.setLevel(logging.CRITICAL)
_NODES_BEGIN = datanode_san("x")[:-1]
_HANDSHAKE_SECONDS_MAX = 10.0
_HELLO_SECONDS_MAX = 10.0
_CLOSE_SECONDS_MAX = 2.0
#: A host with 512 groups that answers a checkpoint of each every 5 s is far below.
_MESSAGES_PER_SECOND, _MESSAGES_BURST = 300.0, 2_000.0
_OUTBOX_MAX = 2_000
#: Answers that wait for an owner; facts are repeated anyway.
_KEPT_MAX = 64
_HEARTBEATS_MISSED_MAX = 3


OwnerOf = Callable[[Place], Owner | None]


@dataclass(frozen=True)
class GatewayOptions:
    """Where it listens, as what, and how often its hosts are to be heard of (seconds). `nodes`:
    who serves data nodes that come in by the same door. `on_twins` is told the tenant and the host
    whose identity two machines seem to use, and True, or False when that is over.
    """

    host: str
    port: int
    tls: Any
    heartbeat_seconds: float
    nodes: NodeGateway | None = None
    on_twins: Callable[[UUID, UUID, bool], None] = lambda *_: None


class Attachment:
    """One host's connection."""

    def __init__(self, peer: Peer, hello: Hello, connection: ServerConnection) -> None:
        self.peer, self.hello = peer, hello
        self.owner: Owner | None = None
        self.outbox: Outbox[str] = Outbox(_OUTBOX_MAX)
        self.kept: deque[str] = deque(maxlen=_KEPT_MAX)
        self.ended = asyncio.Event()
        self.reason = ""
        self._connection = connection

    def send(self, text: str) -> None:
        if not self.outbox.put(text):
            self.drop("it does not read what it is sent")

    def drop(self, reason: str) -> None:
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()

    def say(self, text: str) -> None:
        """The host said this."""
        if self.owner is not None:
            self.owner.said(self, text)
        elif '"type":"heartbeat"' not in text[:64]:
            self.kept.append(text)

    def own(self, owner: Owner | None) -> None:
        """From now on this is its owner."""
        if self.owner is not None:
            self.owner.left(self)
        self.owner = owner
        if owner is not None:
            owner.joined(self)
            while self.kept:
                owner.said(self, self.kept.popleft())

    async def close(self) -> None:
        """Tell the host why, and end the connection, whether it answers or not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                await self._connection.close(1008, control.plain(self.reason, 100))
        self._connection.transport.abort()


class _NodeLine:
    """A data node's connection, as its gateway takes it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed:
            raise WireError("The data node is gone.") from None

    async def receive(self) -> str | None:
        try:
            text = await self._connection.recv()
        except ConnectionClosed:
            return None
        return text if isinstance(text, str) else None


class Gateway:
    """The control door of a process."""

    def __init__(
        self, options: GatewayOptions, database: Database, owner_of: OwnerOf, metrics: Metrics
    ) -> None:
        self._nodes = options.nodes
        self.attached: dict[tuple[UUID, UUID], Attachment] = {}
        self.closed = 0
        self._by_place: dict[Place, set[Attachment]] = defaultdict(set)
        self._options, self._database = options, database
        self._owner_of, self._metrics = owner_of, metrics
        self._now = asyncio.get_running_loop().time
        self._twins = Twins()
        self._server: Server | None = None

    async def start(self) -> int:
        """Listen; the port."""
        options = self._options
        self._server = await serve(
            self._serve,
            options.host,
            options.port,
            ssl=options.tls,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS_MAX,
            create_connection=self._connection_class(),
            process_request=_check_path,
            subprotocols=[control.SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=limits.CONTROL_MESSAGE_BYTES_MAX,
            max_queue=8,
            open_timeout=_HANDSHAKE_SECONDS_MAX,
            ping_interval=None,
            close_timeout=_CLOSE_SECONDS_MAX,
            server_header=None,
            logger=_QUIET,
        )
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close all connections."""
        for attachment in list(self.attached.values()):
            attachment.drop("this process stops")
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def places(self) -> list[Place]:
        """Whose hosts are connected here."""
        return [place for place, attached in self._by_place.items() if attached]

    def route_changed(self, place: Place) -> None:
        """Another owner, or none, for the hosts of a place."""
        for attachment in list(self._by_place.get(place, ())):
            attachment.own(self._owner_of(place))

    def drop_where(self, is_out: Callable[[Peer], bool], reason: str) -> int:
        """End the connections of these hosts; how many."""
        dropped = [one for one in self.attached.values() if is_out(one.peer)]
        for attachment in dropped:
            attachment.drop(reason)
        return len(dropped)

    def look_for_calm(self) -> None:
        """Tell of hosts that one machine alone has used for a while."""
        for key in self._twins.calm(self._now()):
            self._options.on_twins(*key, False)

    def drop_hosts(self, hosts: Iterable[tuple[UUID, UUID]], now: datetime) -> int:
        """End the connections of hosts that were shut out or whose certificate ran out."""
        out = set(hosts)
        revoked = self.drop_where(
            lambda peer: (peer.place.tenant_id, peer.host_id) in out, "the host is shut out"
        )
        return revoked + self.drop_where(
            lambda peer: peer.expires_at < now, "the certificate ran out: renew it"
        )

    def _connection_class(self) -> type[ServerConnection]:
        admit, metrics = self._admit, self._metrics

        class Guarded(ServerConnection):
            """Reads nothing of a peer before it is let in."""

            holdfast_peer: Peer | UUID

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.transport.pause_reading()

            async def handshake(self, *args: Any, **options: Any) -> None:
                tls = self.transport.get_extra_info("ssl_object")
                try:
                    self.holdfast_peer = await admit(tls.getpeercert(binary_form=True))
                except (NotAdmitted, NodeRefused, Problem) as error:
                    metrics.refused.labels(error.code).inc()
                    self.transport.abort()
                    raise InvalidHandshake(error.message) from None
                self.transport.resume_reading()
                await super().handshake(*args, **options)

        return Guarded

    async def _admit(self, der: bytes | None) -> Peer | UUID:
        """The host, or the data node's id; NotAdmitted, NodeRefused, Problem."""
        leaf = read_leaf(der)
        uri = uri_of(leaf)
        if self._nodes is not None and uri.startswith(_NODES_BEGIN):
            return await self._nodes.admit(leaf, uri)
        return await admit_host(leaf, self._database)

    async def _serve(self, connection: ServerConnection) -> None:
        peer: Peer | UUID = connection.holdfast_peer  # type: ignore[attr-defined]
        if isinstance(peer, Peer):
            await self._serve_host(connection, peer)
        elif self._nodes is not None:
            await self._serve_node(connection, peer, self._nodes)

    async def _serve_node(
        self, connection: ServerConnection, node_id: UUID, nodes: NodeGateway
    ) -> None:
        try:
            await nodes.serve(node_id, _NodeLine(connection))
        except HoldfastError as error:
            await connection.close(1008, control.plain(error.message, 100))

    async def _serve_host(self, connection: ServerConnection, peer: Peer) -> None:
        try:
            async with asyncio.timeout(_HELLO_SECONDS_MAX):
                hello = control.decode_from_host(await connection.recv())
        except (WireError, ConnectionClosed, TimeoutError):
            hello = None
        if not isinstance(hello, Hello):
            self._metrics.refused.labels("no_hello").inc()
            await connection.close(1008, "hello comes first")
            return
        attachment = Attachment(peer, hello, connection)
        self._attach(attachment)
        try:
            await until_first(
                self._read(attachment, connection),
                attachment.outbox.run(connection.send),
                attachment.ended.wait(),
                expected=(ConnectionClosed,),
            )
        finally:
            self._detach(attachment)
            await attachment.close()

    async def _read(self, attachment: Attachment, connection: ServerConnection) -> None:
        pace = Pace(_MESSAGES_PER_SECOND, _MESSAGES_BURST)
        silence_max = self._options.heartbeat_seconds * _HEARTBEATS_MISSED_MAX
        try:
            while True:
                async with asyncio.timeout(silence_max):
                    text = await connection.recv()
                if not isinstance(text, str) or not pace.takes(self._now()):
                    attachment.drop("it sends too much, or no text")
                    return
                self._metrics.received.inc()
                attachment.say(text)
        except TimeoutError:
            attachment.drop("nothing was heard of it")
        except ConnectionClosed:
            return

    def _attach(self, attachment: Attachment) -> None:
        key = (attachment.peer.place.tenant_id, attachment.peer.host_id)
        before = self.attached.get(key)
        if before is not None:
            self._detach(before)
            before.drop("a newer connection of the host replaced it")
            if self._twins.replaced(key, self._now()):
                self._options.on_twins(*key, True)
        self.attached[key] = attachment
        self._by_place[attachment.peer.place].add(attachment)
        self._metrics.connections.set(len(self.attached))
        attachment.own(self._owner_of(attachment.peer.place))

    def _detach(self, attachment: Attachment) -> None:
        key = (attachment.peer.place.tenant_id, attachment.peer.host_id)
        if self.attached.get(key) is attachment:
            del self.attached[key]
        attached = self._by_place[attachment.peer.place]
        attached.discard(attachment)
        if not attached:
            del self._by_place[attachment.peer.place]
        attachment.own(None)
        self.closed += 1
        self._metrics.connections.set(len(self.attached))


def _check_path(connection: ServerConnection, request: Request) -> Response | None:
    if request.path != control.PATH:
        return connection.respond(404, "There is nothing here.\n")
    return None
