"""A QMP server of a test: says what it is told to say, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 2}}, "capabilities": []}}


class FakeQmp:
    """Answers each command with `answers[command]`, a value or an error text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.greets = True
        self.silent: set[str] = set()
        self.on_command: Callable[[str], None] = lambda _name: None
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    def tell(self, event: str, **data: Any) -> None:
        """Send an event to everybody."""
        self.send({"event": event, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def send(self, message: Any) -> None:
        """Send anything, JSON or the bytes as they are."""
        line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n"
        for writer in self._writers:
            writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.greets:
            self.send(GREETING)
        while line := await reader.readline():
            request = json.loads(line)
            name = request["execute"]
            self.asked.append((name, request.get("arguments", {})))
            self.on_command(name)
            if name in self.silent:
                continue
            answer = self.answers.get(name, {})
            part = {"error": {"class": "GenericError", "desc": answer}}
            if not isinstance(answer, str):
                part = {"return": answer}
            self.send({**part, "id": request["id"]})
