"""Plain HTTP on loopback: whether the process lives, whether it is ready to work, its figures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_REQUEST_BYTES_MAX = 8192
_REQUEST_SECONDS_MAX = 5.0


class HealthDoor:
    """Answers GET /health, /ready and /metrics, one request a connection."""

    def __init__(
        self, is_ready: Callable[[], Awaitable[bool]], figures: Callable[[], bytes]
    ) -> None:
        self._is_ready, self._figures = is_ready, figures
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_REQUEST_BYTES_MAX)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def stop(self) -> None:
        """Close it."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1:2]
        if path == [b"/metrics"]:
            return _response(200, self._figures(), b"text/plain; version=0.0.4")
        if path == [b"/health"]:
            return _response(200, b'{"status": "up"}')
        if path == [b"/ready"]:
            ready = await self._is_ready()
            return _response(200 if ready else 503, b'{"ready": %s}' % str(ready).lower().encode())
        return _response(404, b"{}")


def _response(status: int, body: bytes, kind: bytes = b"application/json") -> bytes:
    words = {200: b"OK", 404: b"Not Found", 503: b"Service Unavailable"}[status]
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        % (status, words, kind, len(body))
    ) + body
