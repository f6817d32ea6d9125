"""A Unix socket that answers each connection with one JSON object."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

_WRITE_SECONDS_MAX = 2.0


async def serve_json(path: Path, make: Callable[[], dict[str, object]]) -> asyncio.AbstractServer:
    """Listen on a Unix socket, mode 0600; each connection gets one answer. OSError."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(msgspec.json.encode(make()) + b"\n")
            async with asyncio.timeout(_WRITE_SECONDS_MAX):
                await writer.drain()
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, before anybody is served
    mask = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(answer, path)
    finally:
        os.umask(mask)
