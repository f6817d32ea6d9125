"""Between asyncio's transport and a session: bytes go straight where the parser wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from host_agent.wire.errors import HoldfastError
from workers.ingest.parser import MessageParser
from workers.ingest.session import Session

#: After CLOSE we read on and throw away until the agent hangs up, because closing a socket with
#: unread bytes resets the connection, and the agent would never see why it ended.
_LINGER_SECONDS = 2.0

_SCRATCH = memoryview(bytearray(64 * 1024))


class Connection(asyncio.BufferedProtocol):
    """One TLS connection after its handshake. `start` makes its session, or None to refuse it."""

    def __init__(self, start: Callable[[Connection, asyncio.Transport], Session | None]) -> None:
        self._start = start
        self._transport: asyncio.Transport | None = None
        self._session: Session | None = None
        self._parser: MessageParser | None = None
        self._closing = False
        self._linger: asyncio.TimerHandle | None = None
        self.lost = asyncio.Event()

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._session = self._start(self, self._transport)
        if self._session is None:
            self._transport.abort()
        else:
            self._parser = MessageParser(self._session)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        if self._closing or self._parser is None:
            return _SCRATCH
        return self._parser.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing or self._parser is None or self._session is None:
            return
        self._session.on_heard()
        try:
            self._parser.filled(nbytes)
        except HoldfastError as error:
            self._session.on_bad_bytes(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        if self._linger is not None:
            self._linger.cancel()
        if self._session is not None:
            self._session.on_lost()
        self.lost.set()

    # --- the session's side

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        assert self._parser is not None
        self._parser.take()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._closing or self._transport is None or self._transport.is_closing():
            return
        self._closing = True
        self._transport.resume_reading()
        loop = asyncio.get_running_loop()
        self._linger = loop.call_later(_LINGER_SECONDS, self._transport.abort)
