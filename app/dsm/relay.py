"""Between processes: a host's connection ends in one, its manager may live in another.

The gateway's process calls the owner's, over one mutually authenticated connection for all hosts
that it passes on. Who it is, a certificate by the root itself says: PROCESS_URI. Nothing is lost
that matters: after a break every host is told of again, facts repeat, commands are sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
from cryptography import x509
from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import WebSocketException
from websockets.http11 import Request, Response

from app.dsm.assignments import Place
from app.dsm.door import Peer, is_process
from app.dsm.links import Link, Owner
from app.dsm.outbox import Outbox, until_first
from host_agent.wire import control, limits
from host_agent.wire.control import Hello
from host_agent.wire.errors import WireError
from host_agent.wire.names import agent_san, parse_san

PATH = "/v1/relay"
_OUTBOX_MAX = 50_000
_OPEN_SECONDS_MAX = 3.0
_RETRY_SECONDS = 0.25
#: The other process answers pings on its loop: one that hangs is noticed.
_PING_SECONDS = 5.0
#: What breaks a connection is no error here: it is made anew.
_BROKEN = (WebSocketException, WireError)
_MESSAGE_BYTES_MAX = limits.CONTROL_MESSAGE_BYTES_MAX + 16 * limits.KIB


class Joined(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Connection `link` is of this host."""

    link: int
    tenant_id: UUID
    site_id: UUID
    host_id: UUID
    uri: str
    expires_at: datetime
    hello: str


class Said(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A message of the host, or to it."""

    link: int
    text: str


class Left(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The host is gone; or down: it is to be dropped."""

    link: int
    reason: str = ""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Joined | Said | Left] = msgspec.msgpack.Decoder(
    Joined | Said | Left
)
Frame = Joined | Said | Left


@dataclass(frozen=True)
class RelayTls:
    """What the processes know each other by."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    root: x509.Certificate


def _is_process(connection: Connection, root: x509.Certificate) -> bool:
    tls = connection.transport.get_extra_info("ssl_object")
    return is_process(tls.getpeercert(binary_form=True), root)


class RemoteOwner:
    """The owner is another process: what hosts say goes there. Runs until `close`."""

    def __init__(self, address: tuple[str, int], tls: RelayTls) -> None:
        self._address, self._tls = address, tls
        self._numbers = itertools.count(1)
        self._links: dict[int, Link] = {}
        self._number_of: dict[Link, int] = {}
        self._outbox: Outbox[Frame] = Outbox(_OUTBOX_MAX)
        self._is_open = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Nobody is behind it any more. Raises what ended it before."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def is_used(self) -> bool:
        """Whether any host is passed on by it."""
        return bool(self._links)

    def joined(self, link: Link) -> None:
        number = next(self._numbers)
        self._links[number], self._number_of[link] = link, number
        if self._is_open:
            self._put(_joined(number, link))

    def said(self, link: Link, text: str) -> None:
        if self._is_open:
            self._put(Said(self._number_of[link], text))

    def left(self, link: Link) -> None:
        number = self._number_of.pop(link)
        del self._links[number]
        if self._is_open:
            self._put(Left(number))

    def _put(self, frame: Frame) -> None:
        # Too slow an owner: the connection is made anew, without what waited.
        self._is_open = self._outbox.put(frame) and self._is_open

    async def _run(self) -> None:
        host, port = self._address
        while True:
            with contextlib.suppress(OSError, TimeoutError, WebSocketException, ssl.SSLError):
                async with connect(
                    f"wss://{host}:{port}{PATH}",
                    ssl=self._tls.client,
                    server_hostname=host,
                    compression=None,
                    proxy=None,
                    max_size=_MESSAGE_BYTES_MAX,
                    open_timeout=_OPEN_SECONDS_MAX,
                    ping_interval=_PING_SECONDS,
                    ping_timeout=_PING_SECONDS,
                    close_timeout=_OPEN_SECONDS_MAX,
                ) as connection:
                    if _is_process(connection, self._tls.root):
                        await self._serve(connection)
            self._is_open = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _serve(self, connection: Connection) -> None:
        self._outbox = Outbox(_OUTBOX_MAX)
        self._is_open = True
        for number, link in self._links.items():
            self._put(_joined(number, link))
        await until_first(
            self._outbox.run(lambda frame: connection.send(_ENCODER.encode(frame))),
            self._read(connection),
            expected=_BROKEN,
        )

    async def _read(self, connection: Connection) -> None:
        async for data in connection:
            frame = _decode(data)
            link = self._links.get(frame.link)
            if link is not None and isinstance(frame, Said):
                link.send(frame.text)
            elif link is not None and isinstance(frame, Left):
                link.drop(frame.reason)


class RemoteLink:
    """A host whose connection ends in another process."""

    def __init__(self, peer: Peer, hello: Hello, outbox: Outbox[Frame], number: int) -> None:
        self.peer, self.hello = peer, hello
        self._outbox, self._number = outbox, number

    def send(self, text: str) -> None:
        self._outbox.put(Said(self._number, text))

    def drop(self, reason: str) -> None:
        self._outbox.put(Left(self._number, reason))


class RelayServer:
    """Other processes' hosts come to our managers by it."""

    def __init__(self, tls: RelayTls, owner: Owner) -> None:
        self._tls, self._owner = tls, owner
        self._server: Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port."""
        self._server = await serve(
            self._serve,
            host,
            port,
            ssl=self._tls.server,
            ssl_handshake_timeout=_OPEN_SECONDS_MAX,
            process_request=self._check,
            compression=None,
            max_size=_MESSAGE_BYTES_MAX,
            open_timeout=_OPEN_SECONDS_MAX,
            ping_interval=_PING_SECONDS,
            ping_timeout=_PING_SECONDS,
            close_timeout=_OPEN_SECONDS_MAX,
            server_header=None,
        )
        found: int = next(iter(self._server.sockets)).getsockname()[1]
        return found

    async def stop(self) -> None:
        """Close all connections."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path != PATH or not _is_process(connection, self._tls.root):
            return connection.respond(404, "There is nothing here.\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        links: dict[int, RemoteLink] = {}
        outbox: Outbox[Frame] = Outbox(_OUTBOX_MAX)
        try:
            await until_first(
                outbox.run(lambda frame: connection.send(_ENCODER.encode(frame))),
                self._read(connection, links, outbox),
                expected=_BROKEN,
            )
        finally:
            for link in links.values():
                self._owner.left(link)

    async def _read(
        self,
        connection: ServerConnection,
        links: dict[int, RemoteLink],
        outbox: Outbox[Frame],
    ) -> None:
        async for data in connection:
            frame = _decode(data)
            if isinstance(frame, Joined):
                links[frame.link] = _link(frame, outbox)
                self._owner.joined(links[frame.link])
            elif (link := links.get(frame.link)) is None:
                continue
            elif isinstance(frame, Said):
                self._owner.said(link, frame.text)
            else:
                del links[frame.link]
                self._owner.left(link)


def _joined(number: int, link: Link) -> Joined:
    peer = link.peer
    return Joined(
        number,
        peer.place.tenant_id,
        peer.place.site_id,
        peer.host_id,
        agent_san(peer.tenant, peer.host),
        peer.expires_at,
        control.encode(link.hello),
    )


def _link(frame: Joined, outbox: Outbox[Frame]) -> RemoteLink:
    hello = control.decode_from_host(frame.hello)
    if not isinstance(hello, Hello):
        raise WireError("A relay told of a host without its hello.")
    tenant, host = parse_san(frame.uri)
    place = Place(frame.tenant_id, frame.site_id)
    peer = Peer(place, frame.host_id, tenant, host, frame.expires_at)
    return RemoteLink(peer, hello, outbox, frame.link)


def _decode(data: str | bytes) -> Frame:
    if isinstance(data, str):
        raise WireError("A relay sent text.")
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise WireError(f"A relay sent something malformed: {error}.") from None
