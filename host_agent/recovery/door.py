"""A connection to a tenant's restore process at a data node."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from host_agent.recovery.errors import DoorsAway, RecoveryError, RestoreRefused
from host_agent.stream.link import Credentials
from host_agent.stream.tunnel import open_tcp
from host_agent.wire import limits, restoring
from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import RESTORE, server_name
from host_agent.wire.restoring import (
    Close,
    Data,
    List,
    Message,
    Open,
    Opened,
    Opening,
    Ranges,
    Read,
)
from host_agent.wire.ticket import Receipt

_CONNECT_SECONDS = 15.0
#: The other side speaks at least so often while it has something to do.
_SILENT_SECONDS = 60.0
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class Doorway:
    """How a data node is reached, and as whom."""

    address: tuple[str, int]
    tenant: str
    credentials: Credentials

    def __str__(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


class DoorConnection:
    """Made by `connect`. A context manager; OSError and RecoveryError where it breaks."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._reader, self._writer = streams
        self._numbers = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.transport.abort()

    async def open(self, ticket: str, stream: str, receipt: Receipt | None) -> Opened:
        """Show the ticket; RestoreRefused."""
        self._send(Open(restoring.VERSION, ticket, stream, receipt))
        while True:
            message = await self._receive()
            if isinstance(message, Opened):
                return message
            if not isinstance(message, Opening):
                raise _confused(message)

    async def ranges(self, disk: str) -> AsyncIterator[tuple[int, int]]:
        """All ranges of a disk that are not zeroes; nothing else may be asked meanwhile."""
        at: int | None = 0
        while at is not None:
            self._numbers += 1
            self._send(List(self._numbers, disk, at))
            answer = await self._expect(Ranges)
            for found in answer.ranges:
                yield found
            if answer.next is not None and answer.next <= at:
                raise _confused(answer)
            at = answer.next

    async def read(self, disk: str, reads: Iterable[tuple[int, int]]) -> AsyncIterator[Data]:
        """The data of these READs, in order, with several on their way."""
        waiting: list[Read] = []
        for offset, length in reads:
            self._numbers += 1
            waiting.append(Read(self._numbers, disk, offset, length))
            self._send(waiting[-1])
            if len(waiting) == limits.RESTORE_READS_MAX:
                yield await self._data(waiting.pop(0))
        for asked in waiting:
            yield await self._data(asked)

    async def _data(self, asked: Read) -> Data:
        answer = await self._expect(Data)
        told = (answer.request, answer.offset, len(answer.data))
        if told != (asked.request, asked.offset, asked.length):
            raise _confused(answer)
        return answer

    async def _expect(self, kind: type[_M]) -> _M:
        message = await self._receive()
        if not isinstance(message, kind):
            raise _confused(message)
        return message

    def _send(self, message: Message) -> None:
        self._writer.write(restoring.pack(message))

    async def _receive(self) -> Message:
        async with asyncio.timeout(_SILENT_SECONDS):
            while True:
                head = await self._reader.readexactly(restoring.HEAD_BYTES)
                number, length = restoring.parse_head(head)
                message = restoring.parse_body(number, await self._reader.readexactly(length))
                if isinstance(message, Close):
                    raise RestoreRefused(
                        message.code,
                        message.message,
                        hint=message.hint,
                        retry_seconds=message.retry_seconds,
                    )
                if message is not None:
                    return message


def _confused(message: Message) -> RecoveryError:
    return RecoveryError(f"The data node answered {type(message).__name__} to something else.")


async def connect(way: Doorway) -> DoorConnection:
    """Connect and shake hands; DoorsAway, OSError."""
    context = await asyncio.to_thread(_context, way.credentials)
    async with asyncio.timeout(_CONNECT_SECONDS):
        raw = await open_tcp(way.address)
        try:
            streams = await asyncio.open_connection(
                sock=raw,
                ssl=context,
                server_hostname=server_name(way.tenant, RESTORE),
                limit=limits.RESTORE_READ_BYTES_MAX,
            )
        except BaseException:
            raw.close()
            raise
    tls: ssl.SSLObject = streams[1].get_extra_info("ssl_object")
    if tls.selected_alpn_protocol() != restoring.ALPN:
        with contextlib.suppress(OSError):
            streams[1].transport.abort()
        raise DoorsAway(f"{way} serves no restores.")
    return DoorConnection(streams)


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([restoring.ALPN])
    try:
        context.load_verify_locations(credentials.ca_file)
        context.load_cert_chain(credentials.certificate_file, credentials.key_file)
    except (OSError, ssl.SSLError) as error:
        raise RecoveryError(
            f"This host's own certificates cannot be used: {error.strerror or error}.",
            hint="`holdfast-agent renew` makes new ones.",
        ) from None
    return context


#: What a broken or refusing door raises: another may do better.
BROKEN = (OSError, EOFError, TimeoutError, HoldfastError)
