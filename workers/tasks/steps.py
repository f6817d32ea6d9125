"""What each kind of job does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.checkpoints.service import forget_before, kept_checkpoints
from app.database.sessions import Database, TenantSession
from app.jobs.plan import JobKind
from app.jobs.service import Claim
from app.jobs.steps import meter_usage, run_due_acts, tidy_records
from app.keys.service import wrapped_group_key
from app.kit.clock import Clock
from app.kit.ids import Kind, show
from app.kit.sealing import Sealer
from app.models import Vpg
from app.models.base import key_of
from app.vpgs.retained import enter_retained
from host_agent.wire.errors import HoldfastError
from workers.tasks.stores import store_of

_HOUR_SECONDS = 3600


class JournalJobFailed(HoldfastError):
    """The process that works on a journal ended badly. Its code is that of what happened there."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, retryable=True)
        self.code = code


@dataclass(frozen=True)
class StepTools:
    """What a job's step may use."""

    database: Database
    clock: Clock
    #: Where journals are, as long as the provider has named no store.
    store_url: str
    keys_socket: Path
    sealer: Sealer


def _of_tenant(step: Callable[[TenantSession, Any], Awaitable[None]]) -> Any:
    async def run(tools: StepTools, claim: Claim) -> None:
        async with tools.database.tenant(claim.key.tenant_id) as session:
            await step(session, tools.clock.now())
            await session.commit()

    return run


def _of_journal(work: str) -> Any:
    async def run(tools: StepTools, claim: Claim) -> None:
        await run_journal_job({"do": work, **await _order(tools, claim)})

    return run


async def _maintain(tools: StepTools, claim: Claim) -> None:
    """Fold a group's journal; then nobody is offered what was folded away."""
    answer = await run_journal_job({"do": "maintain", **await _order(tools, claim)})
    begins = max((one["history_from"] for one in answer["said"]), default=0)
    if begins:
        async with tools.database.tenant(claim.key.tenant_id) as session:
            moment = datetime.fromtimestamp(begins / 1e9, UTC)
            await forget_before(session, claim.subject, moment)
            await session.commit()


async def _collect(tools: StepTools, claim: Claim) -> None:
    """Delete what was given up; then it is known what the group keeps in the store."""
    answer = await run_journal_job({"do": "collect", **await _order(tools, claim)})
    async with tools.database.tenant(claim.key.tenant_id) as session:
        await enter_retained(session, claim.subject, answer["retained_bytes"])
        await session.commit()


async def _order(tools: StepTools, claim: Claim) -> dict[str, Any]:
    async with tools.database.tenant(claim.key.tenant_id) as session:
        vpg = await session.orm.get_one(Vpg, key_of(session.tenant_id, claim.subject))
        wrapped = await wrapped_group_key(session, claim.subject)
        kept = await kept_checkpoints(session, claim.subject)
        store = await store_of(tools.database, session, tools.sealer, tools.store_url)
    return {
        **store,
        "pinned": kept.pinned,
        "released": kept.released,
        "tenant": show(Kind.TENANT, claim.key.tenant_id),
        "vpg": show(Kind.VPG, claim.subject),
        "window_seconds": vpg.settings["history_hours"] * _HOUR_SECONDS,
        "size_limit": vpg.settings.get("journal_bytes_max"),
        "keys_socket": str(tools.keys_socket),
        "wrapped_key": wrapped.dump(),
        "job": show(Kind.JOB, claim.key.id),
    }


async def run_journal_job(order: Mapping[str, Any]) -> dict[str, Any]:
    """Work on a group's journal in a process of its own, the only one that sees the group's key.

    Returns what it says of its work. JournalJobFailed. Ends the process if it is cancelled.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.tasks.journal_job",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        said, complaint = await process.communicate(json.dumps(order).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise JournalJobFailed(
            "journal_job_died", f"It ended with {process.returncode}: {' '.join(last)}"
        ) from None
    if "error" in answer:
        raise JournalJobFailed(answer["error"], answer["message"])
    return answer


STEPS: dict[str, Callable[[StepTools, Claim], Awaitable[None]]] = {
    JobKind.VPG_MAINTAIN: _maintain,
    JobKind.VPG_COLLECT: _collect,
    JobKind.VPG_SCRUB: _of_journal("scrub"),
    JobKind.METER_USAGE: _of_tenant(meter_usage),
    JobKind.RUN_DUE: _of_tenant(run_due_acts),
    JobKind.TIDY_RECORDS: _of_tenant(tidy_records),
}
