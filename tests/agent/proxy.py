"""A TCP proxy that misbehaves as networks do. It sees ciphertext only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field


@dataclass
class Weather:
    """What the line does, for connections that live and come. Toward ingest unless said."""

    #: Pass bytes one by one, each its own segment.
    is_one_byte: bool = False
    #: Reset both sides after so many bytes more.
    reset_after: int | None = None
    #: Pass nothing, and keep the connections open.
    is_stalled: bool = False
    #: Pass nothing back to the agent.
    is_deaf: bool = False
    #: Flip a bit after so many bytes more.
    flip_after: int | None = None
    #: Refuse new connections.
    is_down: bool = False


@dataclass
class Proxy:
    """Listens on a port of 127.0.0.1 and connects to `target`."""

    target: int
    weather: Weather = field(default_factory=Weather)
    port: int = 0
    passed: int = 0
    connections: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 16)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset_all(self) -> None:
        """End every connection as a broken line does: both sides are reset."""
        for end in self._ends:
            _reset(end)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            if not self.weather.is_down:
                await self._join(reader, writer)
        except asyncio.CancelledError:
            pass  # asyncio's streams complain of a handler that was cancelled
        except OSError:
            pass  # nobody listens behind us now
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target, limit=1 << 16)
        back.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out = asyncio.create_task(self._pass(reader, back, is_out=True))
        home = asyncio.create_task(self._pass(there, writer, is_out=False))
        self._ends |= {writer, back}
        try:
            await asyncio.wait({out, home}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ends -= {writer, back}
            for task in (out, home):
                task.cancel()
            await asyncio.gather(out, home, return_exceptions=True)
            for one in (writer, back):
                one.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_out: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                while self.weather.is_stalled or (self.weather.is_deaf and not is_out):
                    await asyncio.sleep(0.01)
                if is_out:
                    data = self._spoil(data)
                    self.passed += len(data)
                await self._write(writer, data)
                if self._is_cut(len(data), is_out=is_out):
                    _reset(writer)
                    return

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not self.weather.is_one_byte:
            writer.write(data)
            await writer.drain()
            return
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()

    def _spoil(self, data: bytes) -> bytes:
        after = self.weather.flip_after
        if after is None:
            return data
        if after >= len(data):
            self.weather.flip_after = after - len(data)
            return data
        self.weather.flip_after = None
        return data[:after] + bytes([data[after] ^ 0x10]) + data[after + 1 :]

    def _is_cut(self, count: int, *, is_out: bool) -> bool:
        after = self.weather.reset_after
        if after is None or not is_out:
            return False
        self.weather.reset_after = after - count
        if self.weather.reset_after > 0:
            return False
        self.weather.reset_after = None
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
