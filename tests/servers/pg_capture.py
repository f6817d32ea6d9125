"""A PostgreSQL server's door that keeps what clients send: statements with their parameters."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL

_PORT = 5432
_STARTUP_HEAD = 8
_VERSION = 3


@dataclass(frozen=True)
class Statement:
    """What a client had done: the statement, its parameters as they went over the wire."""

    role: str
    text: str
    parameters: tuple[bytes, ...]

    @property
    def sent(self) -> bytes:
        """All that it told."""
        return b"\0".join((self.text.encode(), *self.parameters))


@dataclass
class Capture:
    """What was sent by whom, in order."""

    statements: list[Statement] = field(default_factory=list)

    def of(self, role: str) -> list[Statement]:
        """By this role."""
        return [one for one in self.statements if one.role == role]


class _Reader:
    """One connection's bytes, as the protocol's messages (version 3.0)."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._data = bytearray()
        self._role: str | None = None
        self._prepared: dict[bytes, str] = {}

    def feed(self, data: bytes) -> None:
        self._data += data
        while self._next():
            pass

    def _next(self) -> bool:
        if self._role is None:
            return self._startup()
        if len(self._data) < 5:
            return False
        kind, (length,) = self._data[:1], struct.unpack(">I", self._data[1:5])
        if len(self._data) < 1 + length:
            return False
        body = bytes(self._data[5 : 1 + length])
        del self._data[: 1 + length]
        self._message(bytes(kind), body)
        return True

    def _startup(self) -> bool:
        if len(self._data) < _STARTUP_HEAD:
            return False
        (length,) = struct.unpack(">I", self._data[:4])
        if len(self._data) < length:
            return False
        (code,) = struct.unpack(">I", self._data[4:_STARTUP_HEAD])
        fields = bytes(self._data[_STARTUP_HEAD:length]).split(b"\0")
        del self._data[:length]
        if code >> 16 == _VERSION:
            named = dict(zip(fields[::2], fields[1::2], strict=False))
            self._role = named[b"user"].decode()
        # Else it asks for encryption, or has another connection's statement cancelled.
        return True

    def _message(self, kind: bytes, body: bytes) -> None:
        if kind == b"Q":
            self._note(body.rstrip(b"\0").decode(), ())
        elif kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
        elif kind == b"B":
            _, name, rest = body.split(b"\0", 2)
            self._note(self._prepared[name], _parameters(rest))

    def _note(self, text: str, parameters: tuple[bytes, ...]) -> None:
        assert self._role is not None
        self._capture.statements.append(Statement(self._role, text, parameters))


def _parameters(rest: bytes) -> tuple[bytes, ...]:
    (formats,) = struct.unpack(">H", rest[:2])
    at = 2 + 2 * formats
    (count,) = struct.unpack(">H", rest[at : at + 2])
    at += 2
    found = []
    for _ in range(count):
        (length,) = struct.unpack(">i", rest[at : at + 4])
        at += 4
        found.append(rest[at : at + max(0, length)])
        at += max(0, length)
    return tuple(found)


@asynccontextmanager
async def captured(url: URL, folder: Path) -> AsyncIterator[tuple[URL, Capture]]:
    """(how to reach the same database, what is sent there) while the block lasts."""
    capture = Capture()
    real = Path(str(url.query["host"])) / f".s.PGSQL.{url.port or _PORT}"

    serving: set[asyncio.Task[None]] = set()

    async def serve(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_unix_connection(real)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(client, forth, _Reader(capture)))
                group.create_task(_pass(server, back, None))
        finally:
            for writer in (back, forth):
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    def begin(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(client, back))
        serving.add(task)
        task.add_done_callback(serving.discard)

    door = await asyncio.start_unix_server(begin, folder / f".s.PGSQL.{_PORT}")
    try:
        query = {**url.query, "host": str(folder)}
        yield url.set(query=query, port=None), capture
    finally:
        door.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _pass(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, reader: _Reader | None
) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            if reader is not None:
                reader.feed(data)
            target.write(data)
            await target.drain()
        target.write_eof()
