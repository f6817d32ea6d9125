"""Does one job: takes its lease, holds it while the work goes on, writes down what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import Field

from app.alerts.service import Raised, clear_alerts, raise_alerts
from app.database.schema import check_schema
from app.database.sessions import Database
from app.database.settings import DatabaseSettings
from app.events.ledger import Circumstances, write_ledger
from app.jobs.plan import FAILURES_TOLD, PERIODS
from app.jobs.service import Claim, JobKey, claim_job, fail_job, finish_job, renew_job
from app.kit.clock import Clock, SystemClock
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.kit.settings import Address
from host_agent.wire.errors import HoldfastError
from workers.tasks.steps import STEPS, StepTools

_log = logging.getLogger("holdfast.worker")
#: Renewed so many times within a lease: one lost renewal ends nothing.
_RENEWALS = 4
_INTERNAL = "internal"


class WorkerSettings(DatabaseSettings):
    """What a worker is told."""

    broker_url: str
    worker_processes: int = Field(default=2, ge=1, le=64)
    store_url: str = Field(
        description="Where journals are until the provider names stores: file:///… or s3://…"
    )
    keys_socket: Path
    worker_health_listen: Address | None = Field(
        default=None, description="Plain HTTP on loopback: /health, /ready and /metrics."
    )


def check_database(settings: WorkerSettings) -> None:
    """BadSettings for a schema that is not ours; a database that is away is waited for later."""

    async def check() -> None:
        database = Database(settings.database)
        try:
            with contextlib.suppress(Problem):
                await check_schema(database)
        finally:
            await database.close()

    asyncio.run(check())


Step = Callable[[StepTools, Claim], Awaitable[None]]


class Runner:
    """One event loop and its tools, for one job after the other. Closed by `close`."""

    def __init__(self, settings: WorkerSettings, clock: Clock | None = None) -> None:
        self._loop = asyncio.Runner()
        self._database = Database(settings.database)
        self._tools = StepTools(
            self._database,
            clock or SystemClock(),
            settings.store_url,
            settings.keys_socket,
            Sealer(settings.secret),
        )

    def close(self) -> None:
        """Give everything back."""
        self._loop.run(self._database.close())
        self._loop.close()

    def run(self, key: JobKey) -> str:
        """Do it; what came of it in a word."""
        return self._loop.run(run_job(self._tools, key, STEPS))


async def run_job(tools: StepTools, key: JobKey, steps: dict[str, Step]) -> str:
    """Take the lease, do the step, write down how it ended."""
    async with tools.database.system() as session:
        claim = await claim_job(session, key)
        await session.commit()
    if claim is None:
        return "not due"
    work = asyncio.ensure_future(steps[claim.kind](tools, claim))
    holding = asyncio.create_task(_hold(tools, claim, work))
    try:
        await work
    except asyncio.CancelledError:
        return "lost"
    except HoldfastError as error:
        _log.warning("%s of %s failed: %s", claim.kind, claim.subject, error.message)
        return await _failed(tools, claim, error.code, error.message)
    except Exception:  # noqa: BLE001 - a defect in one job must not end the worker
        _log.exception("%s of %s failed", claim.kind, claim.subject)
        return await _failed(tools, claim, _INTERNAL, "Something failed inside; see the log.")
    finally:
        holding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await holding
    return await _done(tools, claim)


async def _hold(tools: StepTools, claim: Claim, work: asyncio.Future[None]) -> None:
    """Renew the lease; the work ends where it is another's."""
    while True:
        await asyncio.sleep(PERIODS[claim.kind].lease / _RENEWALS)
        async with tools.database.system() as session:
            is_ours = await renew_job(session, claim)
            await session.commit()
        if not is_ours:
            work.cancel()
            return


async def _done(tools: StepTools, claim: Claim) -> str:
    async with tools.database.system() as session:
        is_ours = await finish_job(session, claim)
        await session.commit()
    if is_ours and claim.failures >= FAILURES_TOLD:
        await _tell(tools, claim, None)
    return "done" if is_ours else "lost"


async def _failed(tools: StepTools, claim: Claim, code: str, message: str) -> str:
    async with tools.database.system() as session:
        is_ours = await fail_job(session, claim, code)
        await session.commit()
    if is_ours and claim.failures + 1 >= FAILURES_TOLD:
        await _tell(tools, claim, message)
    return "failed" if is_ours else "lost"


async def _tell(tools: StepTools, claim: Claim, message: str | None) -> None:
    """Raise the alert of a job that fails again and again, or clear it (None)."""
    kind = Kind.VPG if claim.kind.is_of_vpg else Kind.TENANT
    code, subject, now = f"job.{claim.kind}", show(kind, claim.subject), tools.clock.now()
    async with tools.database.tenant(claim.key.tenant_id) as session:
        if message is None:
            happened = await clear_alerts(session, [(code, subject)], now)
        else:
            raised = Raised(code, "warning", subject, message, {"failures": claim.failures + 1})
            happened = await raise_alerts(session, [raised], now)
        request = show(Kind.JOB, claim.key.id)
        await write_ledger(session, happened, [], Circumstances("worker", "", request, now))
        await session.commit()
