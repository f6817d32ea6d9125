"""One host that restores: its ticket, then its requests, answered in their order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from host_agent.wire import limits, restoring
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.restoring import (
    Close,
    Data,
    Disk,
    List,
    Message,
    Open,
    Opened,
    Opening,
    Ranges,
    Read,
)
from host_agent.wire.ticket import make_receipt
from workers.ingest.decide import Peer
from workers.ingest.log import Log
from workers.journal.errors import JournalMoved
from workers.restore.admission import Admitted, Believed, admit
from workers.restore.opened import OpenedMoment, open_moment
from workers.storage.port import ObjectStore

_T = TypeVar("_T")
_Coming = asyncio.Queue[asyncio.Future[Message] | None]
#: A host says what it wants within this time of its handshake, and goes on within the next.
OPEN_SECONDS, IDLE_SECONDS = 10.0, 900.0
#: So often a host that waits for its journal to be read is told that it is.
_OPENING_SECONDS = 5.0
#: A host that takes nothing for so long is gone.
_SEND_SECONDS = 120.0
_RETRY_SECONDS = 2.0
_LINGER_SECONDS, _LINGER_BYTES = 5.0, 64 * limits.KIB


class Busy(HoldfastError):
    """As many restores run as there may be."""

    code = "busy"


@dataclass
class Figures:
    """What the door did since it began."""

    visits: int = 0
    refused: int = 0
    opened: int = 0
    bytes_sent: int = 0


@dataclass
class DoorTools:
    """What all visits share. `believed` and the figures change."""

    believed: Believed
    store: ObjectStore
    executor: Executor
    restores: asyncio.Semaphore
    wall: Callable[[], float]
    log: Log
    figures: Figures = field(default_factory=Figures)


class Visit:
    """A connection after its handshake."""

    def __init__(
        self,
        peer: Peer,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        tools: DoorTools,
    ) -> None:
        self.peer = peer
        self._reader, self._writer = streams
        self._tools = tools

    async def run(self) -> None:
        """Until the host leaves or is refused. Raises OSError where the connection breaks."""
        try:
            asked = await asyncio.wait_for(self._receive(), OPEN_SECONDS)
            if not isinstance(asked, Open):
                raise WireError("A restore begins with OPEN.")
            admitted = admit(asked, self.peer.host, self._tools.believed, self._tools.wall())
            await self._restore(admitted)
        except (HoldfastError, TimeoutError) as error:
            self._tools.figures.refused += 1
            await self._close(error)

    async def _restore(self, admitted: Admitted) -> None:
        tools = self._tools
        if tools.restores.locked():
            raise Busy("As many restores run as may run at once.", retryable=True)
        async with tools.restores:
            moment = await self._open(admitted)
            try:
                self._send(_opened(admitted, moment))
                tools.figures.opened += 1
                where = {"group": admitted.identity.group, "stream": admitted.identity.host}
                tools.log.info("restore_opened", host=self.peer.host, **where)
                await self._serve(moment)
            finally:
                await asyncio.shield(self._run(moment.close))

    async def _open(self, admitted: Admitted) -> OpenedMoment:
        opening = asyncio.ensure_future(
            self._run(
                lambda: open_moment(
                    self._tools.store, admitted.identity, admitted.key, admitted.selector
                )
            )
        )
        try:
            while not (await asyncio.wait({opening}, timeout=_OPENING_SECONDS))[0]:
                self._send(Opening())
            return await opening
        except BaseException:
            opening.add_done_callback(_close_unwanted)
            raise

    async def _serve(self, moment: OpenedMoment) -> None:
        """Several reads are worked on at once; what waits for the host bounds them."""
        coming: _Coming = asyncio.Queue(limits.RESTORE_READS_MAX)
        working: set[asyncio.Future[Message]] = set()
        tasks = [
            asyncio.create_task(self._answer(coming)),
            asyncio.create_task(self._take(moment, coming, working)),
        ]
        try:
            done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            # The moment is closed next: nobody may still read from it.
            await asyncio.gather(*tasks, *working, return_exceptions=True)
        for task in done - left:
            task.result()

    async def _take(
        self, moment: OpenedMoment, coming: _Coming, working: set[asyncio.Future[Message]]
    ) -> None:
        while True:
            asked = await asyncio.wait_for(self._receive(), IDLE_SECONDS)
            if asked is None or isinstance(asked, Close):
                await coming.put(None)
                return
            work = asyncio.ensure_future(self._run(_work_of(asked, moment)))
            working.add(work)
            work.add_done_callback(working.discard)
            await coming.put(work)

    async def _answer(self, coming: _Coming) -> None:
        while (answer := await coming.get()) is not None:
            message = await answer
            self._send(message)
            if isinstance(message, Data):
                self._tools.figures.bytes_sent += len(message.data)
            await asyncio.wait_for(self._writer.drain(), _SEND_SECONDS)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._tools.executor, work)

    async def _receive(self) -> Message | None:
        """The next message that is known; None at the connection's end."""
        while True:
            try:
                head = await self._reader.readexactly(restoring.HEAD_BYTES)
                number, length = restoring.parse_head(head)
                if number == restoring.Type.DATA:
                    raise WireError("A host sends no data.")
                body = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError:
                return None
            message = restoring.parse_body(number, body)
            if message is not None:
                return message

    def _send(self, message: Message) -> None:
        self._writer.write(restoring.pack(message))

    async def _close(self, error: HoldfastError | TimeoutError) -> None:
        if isinstance(error, TimeoutError):
            said = Close("idle", "Nothing was said for too long.", retry_seconds=_RETRY_SECONDS)
        else:
            may_retry = error.retryable or isinstance(error, JournalMoved)
            retry = _RETRY_SECONDS if may_retry else None
            said = Close(error.code[:64], error.message[:2048], error.hint[:2048], retry)
        self._tools.log.warning("restore_ended", host=self.peer.host, code=said.code)
        self._writer.transport.set_write_buffer_limits(0)
        self._send(said)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._writer.drain()
                # A socket that is closed with unread bytes takes the last words with it.
                while await self._reader.read(_LINGER_BYTES):
                    pass


def _work_of(asked: Message, moment: OpenedMoment) -> Callable[[], Message]:
    if isinstance(asked, List):
        return lambda: _listed(asked, moment)
    if isinstance(asked, Read):
        return lambda: _read(asked, moment)
    raise WireError(f"A host does not send {type(asked).__name__.upper()} here.")


def _listed(asked: List, moment: OpenedMoment) -> Ranges:
    found = moment.list_ranges(asked.disk, asked.offset)
    return Ranges(asked.request, found.ranges, found.next)


def _read(asked: Read, moment: OpenedMoment) -> Data:
    data = moment.read(asked.disk, asked.offset, asked.length)
    return Data(asked.request, asked.offset, data, crc32c(data))


def _opened(admitted: Admitted, moment: OpenedMoment) -> Opened:
    point = moment.point
    at = (point.generation_name, point.seq)
    receipt = make_receipt(admitted.ticket, admitted.identity.host, at, admitted.key)
    disks = [Disk(disk.name, disk.size, disk.data_bytes) for disk in moment.disks]
    checkpoint = point.checkpoint.id if point.checkpoint else None
    return Opened(receipt, point.time, checkpoint, disks, moment.unreadable)


def _close_unwanted(opening: asyncio.Future[OpenedMoment]) -> None:
    """Nobody waits for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
