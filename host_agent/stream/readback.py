"""Asks ingest for sealed objects of this stream, over the connection that frames take.

One request at a time; each answer is at most half a MiB. An ingest that gives nothing back does not
answer: after a while that is the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from host_agent.stream.errors import ReadbackFailed
from host_agent.wire import limits
from host_agent.wire.message import Fetch, Fetched, FetchStatus, Message

#: Ingest asks its store, which may try several times.
_ANSWER_SECONDS = 30.0

_Say = Callable[[Message], None]


class Missing(ReadbackFailed):
    """The journal has no such object."""

    code = "readback_missing"


class Readback:
    """The fetching side of one connection. `say` queues a message."""

    def __init__(self, say: _Say) -> None:
        self._say = say
        self._number = 0
        self._waiting: asyncio.Future[Fetched] | None = None
        self._turn = asyncio.Lock()
        self._stored = (0, 0)
        self._stored_waits: list[tuple[int, asyncio.Future[int]]] = []
        self.bytes = 0

    # --- what the connection hears

    def on_fetched(self, message: Fetched) -> None:
        """An answer. One that nobody waits for any more is dropped."""
        waiting = self._waiting
        if waiting is not None and not waiting.done() and message.request == self._number:
            waiting.set_result(message)

    def on_stored(self, seq: int, place: int) -> None:
        """The journal has everything up to `seq`, at the latest at `place`."""
        self._stored = seq, place
        still = []
        for wanted, future in self._stored_waits:
            if wanted > seq:
                still.append((wanted, future))
            elif not future.done():
                future.set_result(place)
        self._stored_waits = still

    # --- what is asked for

    async def stored_place(self, seq: int) -> int:
        """A place up to which the chain has all records up to `seq`, once it is so."""
        if self._stored[0] >= seq:
            return self._stored[1]
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stored_waits.append((seq, future))
        return await future

    async def fetch(self, wanted: Fetch) -> Fetched:
        """One answer; Missing, ReadbackFailed."""
        async with self._turn:
            self._number += 1
            self._waiting = asyncio.get_running_loop().create_future()
            self._say(msgspec.structs.replace(wanted, request=self._number))
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answer = await self._waiting
            except TimeoutError:
                raise ReadbackFailed(
                    "Ingest gives nothing of the journal back.", hint="Update it."
                ) from None
            finally:
                self._waiting = None
        self.bytes += len(answer.data)
        if answer.status is FetchStatus.MISSING:
            raise Missing(f"The journal has no such object ({wanted.what}).")
        if answer.status is not FetchStatus.DONE:
            raise ReadbackFailed(
                f"Ingest could not read what it was asked for ({wanted.what}).",
                hint="Its log says why.",
                retryable=True,
            )
        return answer

    async def whole(self, wanted: Fetch, limit: int) -> tuple[int, bytes]:
        """(place, the object) of at most `limit` bytes, in pieces."""
        data = bytearray()
        while True:
            part = msgspec.structs.replace(wanted, offset=len(data))
            answer = await self.fetch(part)
            if answer.total > limit:
                raise ReadbackFailed(f"An object of {answer.total} bytes is larger than allowed.")
            data += answer.data
            if len(data) >= answer.total:
                return answer.place, bytes(data)
            if not answer.data:
                raise ReadbackFailed("Ingest sent nothing of an object that has more.")

    async def range(self, place: int, offset: int, length: int) -> bytes:
        """Bytes of the segment at `place`."""
        data = bytearray()
        while len(data) < length:
            size = min(limits.FETCH_BYTES_MAX, length - len(data))
            wanted = Fetch(0, "segment", place=place, offset=offset + len(data), length=size)
            answer = await self.fetch(wanted)
            if not answer.data:
                raise ReadbackFailed(f"The segment at place {place} ends too early.")
            data += answer.data
        return bytes(data)
