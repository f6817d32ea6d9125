"""TLS over a plain non-blocking socket, in the shape of asyncio's transports.

asyncio's own TLS copies every byte through two buffers and takes several turns for each piece. Here
what comes is decrypted into the memory that the protocol names, as much at a turn as there is.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

from host_agent.wire.tls import Connection, is_end
from workers.ingest.tls import shown_by

#: Other connections get their turn after this many bytes.
_TURN_BYTES = 1024 * 1024
#: TLS has to write before it can read, as only an odd peer makes it do: the next look, seconds.
_ODD_SECONDS = 0.005

_Watch = Callable[..., None]


class TlsTransport(asyncio.Transport):
    """The server's side. `handshake` first, then `begin`."""

    def __init__(self, context: SSL.Context, connected: socket.socket) -> None:
        super().__init__()
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._tls = Connection(context, connected)
        self._tls.set_accept_state()
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BufferedProtocol | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._is_paused = False
        self._is_closed = False

    async def handshake(self) -> None:
        """Shake hands; SSL.Error or OSError. For ever, if the peer likes."""
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
            except SSL.WantWriteError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    async def _until(self, add: _Watch, remove: Callable[[int], bool]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        number = self._socket.fileno()
        add(number, _resolve, ready)
        try:
            await ready
        finally:
            remove(number)

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        """Give the protocol its transport, and everything that comes from now on."""
        self._protocol = protocol
        protocol.connection_made(self)
        self.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`shown`: what the peer showed in the handshake."""
        return shown_by(self._tls) if name == "shown" else default

    # --- what comes

    def pause_reading(self) -> None:
        """Leave what comes where it is."""
        self._is_paused = True
        if not self._is_closed:
            self._loop.remove_reader(self._socket.fileno())

    def resume_reading(self) -> None:
        """Go on; also with what was decrypted already."""
        self._is_paused = False
        if not self._is_closed:
            self._loop.add_reader(self._socket.fileno(), self._read)
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """A turn: everything that is there, within bounds."""
        protocol, count = self._protocol, 0
        assert protocol is not None
        try:
            while not self._is_paused and not self._is_closed:
                if count >= _TURN_BYTES:
                    self._loop.call_soon(self._read)
                    return
                count += self._fill(protocol)
        except SSL.WantReadError:
            return
        except SSL.WantWriteError:
            self._loop.call_later(_ODD_SECONDS, self._read)
        except (SSL.Error, OSError) as error:
            if is_end(error):
                protocol.eof_received()
            self._lose()

    def _fill(self, protocol: asyncio.BufferedProtocol) -> int:
        """Bytes that came into the memory that the protocol wants filled; raises where TLS waits.

        The protocol hears of all at once, not of each TLS record.
        """
        count, error = self._tls.fill(memoryview(protocol.get_buffer(-1))[:_TURN_BYTES])
        if count:
            protocol.buffer_updated(count)
        if error is not None:
            raise error
        return count

    # --- what leaves

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it, at once or when there is room for it."""
        if self._is_closed or not len(data):
            return
        self._unsent.append(bytes(data))
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._write()

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left."""
        return self._unsent_bytes

    def _write(self) -> None:
        number = self._socket.fileno()
        try:
            while self._unsent:
                # All of it leaves, or the same has to be given again.
                self._tls.send(self._unsent[0])
                self._unsent_bytes -= len(self._unsent.popleft())
        except SSL.WantWriteError:
            self._loop.add_writer(number, self._write)
        except SSL.WantReadError:
            self._loop.call_later(_ODD_SECONDS, self._write)
        except (SSL.Error, OSError):
            self._lose()
        else:
            self._loop.remove_writer(number)

    # --- the end

    def is_closing(self) -> bool:
        """Whether nothing more comes or leaves."""
        return self._is_closed

    def abort(self) -> None:
        """End it at once. Idempotent."""
        self._lose()

    def _lose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._unsent.clear()
        self._unsent_bytes = 0
        self._socket.close()
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, None)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
