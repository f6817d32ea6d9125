"""A TLS 1.3 connection to an ingest, on a plain non-blocking socket.

Not asyncio's own TLS: that copies every byte through two more buffers. Not Python's `ssl` either:
the system's OpenSSL may be years older than the one that comes with `cryptography`, which seals
three times as fast with what processors can do since.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from OpenSSL import SSL

from host_agent.stream.errors import CertificateRefused, LinkLost
from host_agent.stream.tunnel import open_tcp
from host_agent.wire import message
from host_agent.wire.errors import HoldfastError
from host_agent.wire.message import Message
from host_agent.wire.tls import (
    PARTIAL_WRITE,
    RECORD_BYTES,
    ServerCheck,
    Unusable,
    believe,
    is_end,
    reason_of,
    show,
)

CONNECT_SECONDS = 10.0
#: Without an acknowledgement by the peer's kernel for this long the connection is dead.
_DEAD_SECONDS = 12
#: Little waits in the kernel, so that an answer to a probe is not stuck behind megabytes; yet
#: enough for a frame to be handed over in few turns.
_UNSENT_BYTES_MAX = 1024 * 1024
_TCP_NOTSENT_LOWAT = 25
#: Other work of the loop gets its turn after this many bytes.
_TURN_BYTES = 2048 * 1024
_JOIN_BYTES_MAX = 32 * 1024

#: Types of messages from here on may be skipped by who does not know them.
_SKIPPED_FROM = 128

_Watch = Callable[..., None]
_Unwatch = Callable[[int], bool]


@dataclass(frozen=True)
class Credentials:
    """Files of the one authority that is believed, and of this host's own certificate."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


def client_context(credentials: Credentials) -> SSL.Context:
    """TLS 1.3, pinned authority, own certificate; CertificateRefused if a file is unusable.

    Made anew for each connection, so that renewed certificates are used without a restart. Whose
    certificate the peer has to show is said for each connection: see `ServerCheck`.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    # A call goes on until all is written or the socket is full, and not to the next record alone.
    context.clear_mode(PARTIAL_WRITE)
    context.set_alpn_protos([message.ALPN.encode()])
    try:
        believe(context, credentials.ca_file.read_bytes())
        show(context, credentials.certificate_file.read_bytes(), credentials.key_file.read_bytes())
    except (Unusable, OSError) as error:
        raise CertificateRefused(
            f"The agent's own certificates cannot be used: {reason_of(error)}.",
            hint="Check ca_file, certificate_file and key_file in the section [ingest].",
        ) from None
    return context


async def connect(
    address: tuple[str, int], credentials: Credentials, server_name: str | None
) -> TlsLink:
    """Connect and shake hands within CONNECT_SECONDS; LinkLost or CertificateRefused."""
    shown = f"{address[0]}:{address[1]}"
    name = server_name or address[0]
    context, check = client_context(credentials), ServerCheck(name)
    context.set_verify(SSL.VERIFY_PEER, check)
    link: TlsLink | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            raw = await open_tcp(address)
            _tune(raw)
            link = TlsLink(SSL.Connection(context, raw), shown)
            await link.handshake(check)
            established, link = link, None
            return established
    except TimeoutError:
        raise LinkLost(f"{shown} does not answer.", hint=_REACH, retryable=True) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise LinkLost(f"{shown}: {reason}.", hint=_REACH, retryable=True) from None
    finally:
        if link is not None:
            await link.close()


#: In TLS 1.3 a server that refuses a client's certificate may look like one that hangs up.
_UNHEARD = "It said nothing: it may not accept this host's certificate. Its log tells."
_REACH = "Check that ingest runs there and that the network lets this host reach it."


def _tune(raw: socket.socket) -> None:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_SECONDS * 1000)
    raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)


class TlsLink:
    """One connection. One task may send while another receives."""

    def __init__(self, connection: SSL.Connection, address: str) -> None:
        self.address = address
        self._socket = connection
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._closed = False
        self._has_heard = False

    async def handshake(self, check: ServerCheck) -> None:
        """Shake hands; CertificateRefused, LinkLost or OSError."""
        if not check.is_address:
            self._socket.set_tlsext_host_name(check.name.encode())
        self._socket.set_connect_state()
        while True:
            try:
                self._socket.do_handshake()
                break
            except SSL.WantReadError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
            except SSL.WantWriteError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)
            except SSL.Error as error:
                if check.refused:
                    raise self._not_believed(check.refused) from None
                what = f"{self.address}: {reason_of(error)}."
                raise LinkLost(what, hint=_REACH, retryable=True) from None
        if not check.is_passed:
            raise self._not_believed("it was not looked at")
        if self._socket.get_alpn_proto_negotiated() != message.ALPN.encode():
            raise LinkLost(
                f"{self.address} does not speak {message.ALPN}.",
                hint="Name the port of an ingest of this version.",
            )

    def _not_believed(self, why: str) -> CertificateRefused:
        return CertificateRefused(
            f"{self.address} showed a certificate that is not believed: {why}.",
            hint="Check ca_file and server_name in the section [ingest].",
        )

    async def send(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Send all bytes; LinkLost. For one task at a time, and not after a cancelled send."""
        if sum(map(len, chunks)) <= _JOIN_BYTES_MAX:
            # As one they share TLS records and system calls.
            await self._send_each([b"".join(chunks)])
            return
        # TLS gives the kernel one record after another: it is to fill its packets with them.
        self._cork(is_on=True)
        await self._send_each(chunks)
        self._cork(is_on=False)

    def _cork(self, *, is_on: bool) -> None:
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, is_on)
        except OSError as error:
            raise self._lost(error) from None

    async def _send_each(self, chunks: Sequence[bytes | memoryview]) -> None:
        for chunk in chunks:
            view = memoryview(chunk)
            for at in range(0, len(view), _TURN_BYTES):
                await self._send_turn(view[at : at + _TURN_BYTES])

    async def _send_turn(self, turn: memoryview) -> None:
        if self._push(turn):
            await asyncio.sleep(0)
            return
        descriptor = self._descriptor()
        left: asyncio.Future[None] = self._loop.create_future()
        # Only the turn's end wakes the task: each time that there is room costs a call, no more.
        self._loop.add_writer(descriptor, self._push_on, turn, left)
        try:
            await left
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_writer(descriptor)

    def _push_on(self, turn: memoryview, left: asyncio.Future[None]) -> None:
        if left.done():
            return
        try:
            if self._push(turn):
                left.set_result(None)
        except HoldfastError as error:
            left.set_exception(error)

    def _push(self, turn: memoryview) -> bool:
        """Whether all of it left. Else it has to be given again just so: TLS knows how far it was.

        TLS 1.3 never has to read before it can write.
        """
        try:
            self._socket.send(turn)
        except (SSL.WantWriteError, SSL.WantReadError):
            return False
        except (SSL.Error, OSError) as error:
            raise self._lost(error) from None
        return True

    async def receive(self) -> Message:
        """The next message that is known; LinkLost, CertificateRefused or WireError."""
        while True:
            await self._fill(message.HEAD_BYTES)
            number, length = message.parse_head(bytes(self._buffer[: message.HEAD_BYTES]))
            await self._fill(message.HEAD_BYTES + length)
            body = bytes(self._buffer[message.HEAD_BYTES : message.HEAD_BYTES + length])
            del self._buffer[: message.HEAD_BYTES + length]
            if number < _SKIPPED_FROM or number == message.MessageType.FETCHED:
                return message.parse_body(number, body)

    async def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            try:
                data = self._socket.recv(RECORD_BYTES)
            except SSL.WantReadError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
                continue
            except SSL.WantWriteError:
                await asyncio.sleep(0.001)
                continue
            except (SSL.Error, OSError) as error:
                if not is_end(error):
                    raise self._lost(error) from None
                data = b""
            if not data:
                hint = "" if self._has_heard else _UNHEARD
                raise LinkLost(f"{self.address} ended the connection.", hint=hint, retryable=True)
            self._has_heard = True
            self._buffer += data

    async def close(self) -> None:
        """End the connection at once. Idempotent."""
        if not self._closed:
            self._closed = True
            descriptor = self._socket.fileno()
            if descriptor >= 0:
                self._loop.remove_reader(descriptor)
                self._loop.remove_writer(descriptor)
            with contextlib.suppress(OSError):
                self._socket.close()

    def _lost(self, error: Exception) -> LinkLost | CertificateRefused:
        reason = reason_of(error)
        if "alert" in reason:
            # In TLS 1.3 the server's refusal of a client's certificate arrives after the handshake.
            return CertificateRefused(
                f"{self.address} refused this host's certificate ({reason}).",
                hint="Check that it is valid, of this tenant and signed by what ingest believes.",
            )
        return LinkLost(f"{self.address}: {reason}.", retryable=True)

    def _descriptor(self) -> int:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise LinkLost(f"The connection to {self.address} was closed.", retryable=True)
        return int(descriptor)

    async def _until(self, add: _Watch, remove: _Unwatch) -> None:
        descriptor = self._descriptor()
        ready: asyncio.Future[None] = self._loop.create_future()
        add(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            if self._socket.fileno() >= 0:
                remove(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
