"""Clients that ask a server as fast as it answers: each one at a time, over its own connection."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.processes import BenchFailed, cpu_seconds_fine

HOST = "127.0.0.1"
_LENGTH = b"content-length: "


@dataclass(frozen=True)
class Asked:
    """What clients saw: how long each answer took, seconds; how many came a second; what one took
    of a processor in the server's process, seconds.
    """

    seconds: np.ndarray[tuple[int], np.dtype[np.float64]]
    rate: float
    processor: float

    @property
    def median_ms(self) -> float:
        """Half of the answers came sooner."""
        return float(np.median(self.seconds)) * 1e3

    @property
    def p99_ms(self) -> float:
        """All but one of a hundred came sooner."""
        return float(np.percentile(self.seconds, 99)) * 1e3


@dataclass(frozen=True)
class Server:
    """Where a server is, and which process it is."""

    port: int
    root: Path
    pid: int


def request(method: str, path: str, token: str = "", body: bytes = b"", key: str = "") -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "accept: application/json"]
    if token:
        lines.append(f"authorization: Bearer {token}")
    if key:
        lines.append(f"idempotency-key: {key}")
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(server: Server, turns: Iterator[bytes], clients: int, seconds: float) -> Asked:
    """So many clients take turns for so long; BenchFailed at an answer but 2xx."""
    context = ssl.create_default_context(cafile=str(server.root))
    taken: list[float] = []
    connections = [
        await asyncio.open_connection(HOST, server.port, ssl=context) for _ in range(clients)
    ]
    before, begin = cpu_seconds_fine([server.pid]), time.perf_counter()
    try:
        await asyncio.gather(
            *(
                _client(reader, writer, turns, taken, begin + seconds)
                for reader, writer in connections
            )
        )
        length = time.perf_counter() - begin
        processor = cpu_seconds_fine([server.pid]) - before
    finally:
        for _, writer in connections:
            writer.close()
    return Asked(np.array(taken), len(taken) / length, processor / len(taken))


async def _client(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    turns: Iterator[bytes],
    taken: list[float],
    until: float,
) -> None:
    while (begin := time.perf_counter()) < until:
        writer.write(next(turns))
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_length_of(head))
        if head[9:10] != b"2":
            raise BenchFailed(f"a server answered {head[:200]!r} {body[:500]!r}")
        taken.append(time.perf_counter() - begin)


def _length_of(head: bytes) -> int:
    at = head.find(_LENGTH) + len(_LENGTH)
    return int(head[at : head.index(b"\r", at)])
