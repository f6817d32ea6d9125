"""A TLS 1.3 connection to an ingest, on a plain non-blocking socket.

Not asyncio's own TLS: that copies every byte through two more buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from host_agent.stream.errors import CertificateRefused, LinkLost
from host_agent.stream.tunnel import open_tcp
from host_agent.wire import message
from host_agent.wire.message import Message

CONNECT_SECONDS = 10.0
#: Without an acknowledgement by the peer's kernel for this long the connection is dead.
_DEAD_SECONDS = 12
#: Little waits in the kernel, so that an answer to a probe is not stuck behind megabytes.
_UNSENT_BYTES_MAX = 256 * 1024
_TCP_NOTSENT_LOWAT = 25
#: Other work of the loop gets its turn after this many bytes.
_TURN_BYTES = 512 * 1024
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


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3, pinned authority, own certificate; CertificateRefused if a file is unusable.

    Made anew for each connection, so that renewed certificates are used without a restart.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([message.ALPN])
    try:
        context.load_verify_locations(credentials.ca_file)
        context.load_cert_chain(credentials.certificate_file, credentials.key_file)
    except (OSError, ssl.SSLError) as error:
        raise CertificateRefused(
            f"The agent's own certificates cannot be used: {error.strerror or error}.",
            hint="Check ca_file, certificate_file and key_file in the section [ingest].",
        ) from None
    return context


async def connect(
    address: tuple[str, int], credentials: Credentials, server_name: str | None
) -> TlsLink:
    """Connect and shake hands within CONNECT_SECONDS; LinkLost or CertificateRefused."""
    shown = f"{address[0]}:{address[1]}"
    context = client_context(credentials)
    link: TlsLink | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            raw = await open_tcp(address)
            _tune(raw)
            name = server_name or address[0]
            wrapped = context.wrap_socket(raw, server_hostname=name, do_handshake_on_connect=False)
            link = TlsLink(wrapped, shown)
            await link.handshake()
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

    def __init__(self, wrapped: ssl.SSLSocket, address: str) -> None:
        self.address = address
        self._socket = wrapped
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._closed = False
        self._has_heard = False

    async def handshake(self) -> None:
        """Shake hands; CertificateRefused, or OSError."""
        while True:
            try:
                self._socket.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)
            except ssl.SSLCertVerificationError as error:
                raise CertificateRefused(
                    f"{self.address} showed a certificate that is not believed: "
                    f"{error.verify_message}.",
                    hint="Check ca_file and server_name in the section [ingest].",
                ) from None
        if self._socket.selected_alpn_protocol() != message.ALPN:
            raise LinkLost(
                f"{self.address} does not speak {message.ALPN}.",
                hint="Name the port of an ingest of this version.",
            )

    async def send(self, chunks: Sequence[bytes]) -> None:
        """Send all bytes; LinkLost. For one task at a time, and not after a cancelled send."""
        for chunk in _joined(chunks):
            view = memoryview(chunk)
            at = 0
            while at < len(view):
                pushed, blocked = self._push(view, at)
                at += pushed
                if blocked is None:
                    await asyncio.sleep(0)
                elif blocked is ssl.SSLWantWriteError:
                    await self._until(self._loop.add_writer, self._loop.remove_writer)
                else:
                    await asyncio.sleep(0.001)  # the receiving task reads what TLS waits for

    def _push(self, view: memoryview, start: int) -> tuple[int, type[ssl.SSLError] | None]:
        """Bytes that left, a turn's worth at most, and what TLS waits for. One call takes no more
        than a TLS record, so nothing else is done between two of them.
        """
        send, at, end = self._socket.send, start, min(len(view), start + _TURN_BYTES)
        try:
            while at < end:
                at += send(view[at:])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
            return at - start, type(error)
        except OSError as error:
            raise self._lost(error) from None
        return at - start, None

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
                data = self._socket.recv(64 * 1024)
            except ssl.SSLWantReadError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
                continue
            except ssl.SSLWantWriteError:
                await asyncio.sleep(0.001)
                continue
            except OSError as error:
                raise self._lost(error) from None
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

    def _lost(self, error: OSError) -> LinkLost | CertificateRefused:
        if isinstance(error, ssl.SSLError) and error.reason and "ALERT" in error.reason:
            # In TLS 1.3 the server's refusal of a client's certificate arrives after the handshake.
            return CertificateRefused(
                f"{self.address} refused this host's certificate "
                f"({error.reason.lower().replace('_', ' ')}).",
                hint="Check that it is valid, of this tenant and signed by what ingest believes.",
            )
        return LinkLost(f"{self.address}: {error.strerror or error}.", retryable=True)

    async def _until(self, add: _Watch, remove: _Unwatch) -> None:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise LinkLost(f"The connection to {self.address} was closed.", retryable=True)
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


def _joined(chunks: Sequence[bytes]) -> Sequence[bytes]:
    """Small chunks as one, so that they share TLS records and system calls."""
    small = sum(map(len, chunks)) <= _JOIN_BYTES_MAX
    return [b"".join(chunks)] if small and len(chunks) > 1 else chunks
