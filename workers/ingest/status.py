"""What this ingest is doing, as one JSON object for everybody who connects to its status socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from workers.ingest.budget import Budget
from workers.ingest.rpo import Moment
from workers.ingest.server import Server

_WRITE_SECONDS_MAX = 2.0


def status_of(server: Server, budget: Budget, now: Moment) -> dict[str, object]:
    """The whole status: figures of the process, then every stream."""
    counters = server.counters
    return {
        "at": now.wall_ns,
        "connections": server.connections,
        "sessions": len(server.sessions),
        "accepted": counters.accepted,
        "refused_full": counters.refused_full,
        "refused_handshake": counters.refused_handshake,
        "refused_peer": counters.refused_peer,
        "put_out": counters.put_out,
        "sessions_with_late_certificate": server.sessions_late,
        "defects": counters.defects,
        "memory_held_bytes": budget.held,
        "memory_held_bytes_max": budget.held_max,
        "streams": [facts.as_dict(now) for facts in server.all_facts()],
    }


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
