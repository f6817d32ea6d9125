"""Tells the broker which jobs are due. May run in any number of processes at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from celery import Celery
from kombu.exceptions import OperationalError

from app.database.sessions import Database
from app.jobs.plan import JobKind
from app.jobs.service import JobKey, ensure_jobs, take_due
from app.kit.problems import Problem

_log = logging.getLogger(__name__)
TASK = "holdfast.job"
#: A message that nobody took for so long is dropped: it is sent again while the job is due.
_EXPIRES_SECONDS = 60
_ENSURE_SECONDS = 60.0

Send = Callable[[Sequence[JobKey]], Awaitable[None]]


class BrokerAway(Exception):
    """The broker took no message. What is due is told again later."""


def sender(broker: str) -> Send:
    """Puts messages for workers on this broker; BrokerAway."""
    client = Celery(broker=broker, set_as_current=False)
    client.conf.update(
        task_ignore_result=True,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
    )

    def put(keys: Sequence[JobKey]) -> None:
        for key in keys:
            client.send_task(
                TASK, [str(key.tenant_id), str(key.id)], expires=_EXPIRES_SECONDS, retry=False
            )

    async def send(keys: Sequence[JobKey]) -> None:
        try:
            await asyncio.to_thread(put, keys)
        except (OperationalError, OSError) as error:
            raise BrokerAway(str(error)) from None

    return send


async def relay_jobs(
    database: Database,
    send: Send,
    interval_seconds: float = 1.0,
    periods: dict[JobKind, int] | None = None,
) -> None:
    """Look and tell, until it is cancelled. Waits out a database or a broker that is away."""
    ensured_at = -_ENSURE_SECONDS
    while True:
        try:
            async with database.system() as session:
                if time.monotonic() - ensured_at >= min(_ENSURE_SECONDS, 60 * interval_seconds):
                    await ensure_jobs(session, periods)
                    ensured_at = time.monotonic()
                due = await take_due(session)
                if due:
                    await send(due)
                    # Told, then written down: a crash between the two tells once more.
                await session.commit()
        except (Problem, BrokerAway) as error:
            _log.warning("jobs wait: %s", error)
        await asyncio.sleep(interval_seconds)
