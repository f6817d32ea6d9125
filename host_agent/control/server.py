"""The agent's own socket: commands and answers as JSON lines, for the owner of the agent alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from host_agent.control.client import short_address
from host_agent.control.errors import AgentRunning, BadRequest, StateUnusable
from host_agent.control.tap_client import Fields
from host_agent.wire.errors import HoldfastError

_log = logging.getLogger("holdfast.agent")

LINE_BYTES_MAX = 64 * 1024
_CONNECTIONS_MAX = 32

Command = Callable[[Fields], Awaitable[Fields]]


class CommandServer:
    """Listens on a Unix socket of mode 0600."""

    def __init__(self, path: Path, command: Command) -> None:
        self._path = path
        self._command = command
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; AgentRunning if somebody answers there, StateUnusable."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            listener = self._listener()
        except OSError as error:
            raise StateUnusable(
                f"The agent's socket {self._path} cannot be made: {error.strerror or error}.",
                hint="Check its folder.",
            ) from None
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=LINE_BYTES_MAX
        )

    def _listener(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_dead()
            before = os.umask(0o177)
            try:
                with short_address(self._path) as address:
                    listener.bind(address)
            finally:
                os.umask(before)
        except BaseException:
            listener.close()
            raise
        return listener

    def _remove_dead(self) -> None:
        """A socket that nobody listens on was left by an agent that was killed."""
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
            short_address(self._path) as address,
        ):
            if self._path.exists() and probe.connect_ex(address) == 0:
                raise AgentRunning(f"Another agent answers at {self._path}.", hint="Stop it first.")
        self._path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """Stop listening and end all conversations."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) <= _CONNECTIONS_MAX:
                await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                return
            answer = await self._answer(line)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()

    async def _answer(self, line: bytes) -> Fields:
        try:
            request = _parse(line)
            return {"ok": True, **await self._command(request)}
        except HoldfastError as error:
            return {"ok": False, **error.as_dict()}


def _parse(line: bytes) -> Fields:
    try:
        request = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise BadRequest("A command is one JSON object on one line.")
    return request
