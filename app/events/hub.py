"""Wakes this process's event streams: one question a tenant and interval, however many look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import Database, TenantSession
from app.kit.problems import Problem
from app.models import TenantLedger

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 0.5
#: Of one tenant in one process: a stream costs a connection and a little memory.
STREAMS_MAX = 200


async def head_of(session: TenantSession) -> int:
    """The place of the tenant's newest event."""
    wanted = select(TenantLedger.event_place).where(TenantLedger.tenant_id == session.tenant_id)
    return int((await session.orm.execute(wanted)).scalar_one())


@dataclass
class _Watch:
    streams: int = 0
    head: int = -1
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class EventHub:
    """Closed by `close`: then all streams end."""

    def __init__(self, database: Database, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self._database = database
        self._interval = interval_seconds
        self._watches: dict[UUID, _Watch] = {}
        self.closing = asyncio.Event()

    def check_room(self, tenant_id: UUID) -> None:
        """Problem `too_many_streams`; to be asked before an answer begins."""
        watch = self._watches.get(tenant_id)
        if watch is not None and watch.streams >= STREAMS_MAX:
            raise Problem("too_many_streams", hint="Close streams that nobody reads.")

    @contextmanager
    def watching(self, tenant_id: UUID) -> Iterator[None]:
        """While a stream of this tenant is open; Problem where too many are."""
        self.check_room(tenant_id)
        watch = self._watches.setdefault(tenant_id, _Watch())
        watch.streams += 1
        if watch.task is None:
            watch.task = asyncio.create_task(self._poll(tenant_id, watch))
        try:
            yield
        finally:
            watch.streams -= 1
            if watch.streams == 0:
                watch.task.cancel()
                del self._watches[tenant_id]

    async def wait_beyond(self, tenant_id: UUID, place: int, seconds: float) -> bool:
        """Until an event after `place` is there: True; False after so long, or when closing."""
        watch = self._watches[tenant_id]
        deadline = asyncio.get_running_loop().time() + seconds
        while watch.head <= place and not self.closing.is_set():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(watch.changed.wait(), left)
            except TimeoutError:
                return False
        return watch.head > place

    def close(self) -> None:
        """End all streams."""
        self.closing.set()
        for watch in self._watches.values():
            watch.changed.set()

    async def _poll(self, tenant_id: UUID, watch: _Watch) -> None:
        while True:
            try:
                async with self._database.tenant(tenant_id) as session:
                    head = await head_of(session)
            except Problem as problem:
                # The database is away; streams stay open and go on when it is back.
                _log.warning("events cannot be read: %s", problem.message)
                head = watch.head
            if head != watch.head:
                watch.head = head
                watch.changed.set()
                watch.changed = asyncio.Event()
            await asyncio.sleep(self._interval)
