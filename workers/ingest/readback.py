"""Gives an agent its own stream's sealed objects back, so that it can compare its disks with them.

Strictly the session's own stream, one answer at a time, bounded in size and rate. Nothing is opened
here: what an agent gets is what it sealed, or what the journal's keepers sealed with its key.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.message import Fetch, Fetched, FetchStatus, pack
from host_agent.wire.names import (
    Identity,
    chain_name,
    hashes_name,
    hashes_place,
    hashes_prefix,
    key_name,
)
from host_agent.wire.segment import parse_trailer
from workers.ingest.errors import CloseCode, SessionEnded
from workers.ingest.facts import StreamFacts
from workers.ingest.tools import Line, Tools
from workers.storage.errors import ObjectMissing
from workers.storage.port import ObjectStore

#: Bytes a second to one agent: the streams that come in have priority.
RATE_BYTES = 128 * limits.MIB

#: First read of a segment's end, as a reader of the chain does it.
_TAIL_BYTES_GUESS = 128 * limits.KIB

#: Segments that one answer looks at: small tails must not keep a thread for long.
_TAILS_MAX = 64


@dataclass(frozen=True)
class _Found:
    place: int
    total: int
    data: bytes


class Readback:
    """Answers the FETCH messages of one session, of places that it claimed or appended."""

    def __init__(self, identity: Identity, facts: StreamFacts, tools: Tools, line: Line) -> None:
        self._identity = identity
        self._facts = facts
        self._tools = tools
        self._line = line
        self._task: asyncio.Task[None] | None = None
        self._tail: tuple[int, bytes] = (0, b"")

    def ask(self, message: Fetch) -> None:
        """Answer later; SessionEnded if the one before is not answered yet."""
        if self._task is not None and not self._task.done():
            raise SessionEnded(
                CloseCode.PROTOCOL, "A FETCH came before the answer to the last.", retry_seconds=5.0
            )
        self._task = asyncio.create_task(self._answer(message))

    def close(self) -> None:
        """The session is over."""
        if self._task is not None:
            self._task.cancel()

    async def _answer(self, message: Fetch) -> None:
        store = self._tools.store
        answer = Fetched(message.request, FetchStatus.MISSING, message.place, 0)
        try:
            found = await self._tools.offload(lambda: self._find(store, message))
            answer = Fetched(
                message.request, FetchStatus.DONE, found.place, found.total, found.data
            )
        except ObjectMissing:
            pass
        except HoldfastError as error:
            # It concerns what was asked for: the stream itself goes on.
            self._tools.log.warning(
                "fetch_failed", stream=self._identity, what=message.what, message=error.message
            )
            answer = Fetched(message.request, FetchStatus.FAILED, message.place, 0)
        await asyncio.sleep(len(answer.data) / RATE_BYTES)
        self._line.write(pack(answer))

    # --- in a thread

    def _find(self, store: ObjectStore, message: Fetch) -> _Found:
        if message.what == "tails":
            return self._tails(store, message)
        if message.what == "hashes":
            place = message.place or self._newest_hashes(store)
            name = hashes_name(self._identity, place, message.part)
        elif message.what == "segment":
            place, name = message.place, chain_name(self._identity, message.place)
        else:
            place, name = 0, key_name(self._identity, bytes.fromhex(message.generation or ""))
        if place > self._facts.place:
            raise ObjectMissing(store.label, name)
        total = store.size(name)
        length = max(0, min(message.length, total - message.offset))
        return _Found(place, total, store.get_range(name, message.offset, length))

    def _newest_hashes(self, store: ObjectStore) -> int:
        prefix = hashes_prefix(self._identity)
        for folder in sorted(store.folders(prefix), reverse=True):
            found = hashes_place(f"{folder}{0:08x}")
            if found is None or found[0] > self._facts.place:
                continue
            listed = next(iter(store.list(folder, limit=1)), None)
            # The directory is made last: without it there is no list.
            if listed is not None and hashes_place(listed.name) == found:
                return found[0]
        raise ObjectMissing(store.label, prefix)

    def _tails(self, store: ObjectStore, message: Fetch) -> _Found:
        """Whole tails one after another, as far as they fit."""
        data = bytearray()
        place, offset = message.place, message.offset
        for _ in range(_TAILS_MAX):
            if place > self._facts.place or len(data) >= message.length:
                break
            framed = self._framed_tail(store, place)
            data += framed[offset : offset + message.length - len(data)]
            place, offset = place + 1, 0
        return _Found(message.place, 0, bytes(data))

    def _framed_tail(self, store: ObjectStore, place: int) -> bytes:
        if self._tail[0] != place:
            tail = _read_tail(store, chain_name(self._identity, place))
            self._tail = place, len(tail).to_bytes(4, "little") + tail
        return self._tail[1]


def _read_tail(store: ObjectStore, name: str) -> bytes:
    tail = store.get_tail(name, _TAIL_BYTES_GUESS)
    info = parse_trailer(tail)
    if len(tail) < info.tail_length:
        tail = store.get_range(name, info.object_length - info.tail_length, info.tail_length)
    if len(tail) < info.tail_length:
        raise WireError("The segment is cut off.")
    return tail[len(tail) - info.tail_length :]
