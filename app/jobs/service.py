"""Jobs in the database: their truth. A message on the broker only says that one is due.

Whoever does a job takes its lease first, by the database's clock; a lease that ran out is taken by
the next one, and what the earlier holder still writes about the job is refused by its fence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, delete, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import SystemSession
from app.jobs.plan import PERIODS, JobKind, retry_seconds
from app.models import Job, Tenant, Vpg
from app.models.tenants import TenantState
from app.vpgs.state import Lifecycle

_DUE_MAX = 500
#: The broker is told again of what nobody took for so long: a message may be lost.
_TOLD = timedelta(seconds=30)
_FIRST_LEASE = timedelta(seconds=60)


@dataclass(frozen=True)
class JobKey:
    """A job's name, for messages."""

    tenant_id: UUID
    id: UUID


@dataclass(frozen=True)
class Claim:
    """A job that is ours until its lease ends."""

    key: JobKey
    kind: JobKind
    subject: UUID
    fence: int
    failures: int


async def ensure_jobs(session: SystemSession, periods: dict[JobKind, int] | None = None) -> int:
    """A job of each kind for each tenant and group that works; how many were made.

    What was made is due at once, so that a new group is looked after from its first hour.
    """
    made = 0
    for kind, period in PERIODS.items():
        every = (periods or {}).get(kind, period.every)
        wanted = _vpgs(kind, every) if kind.is_of_vpg else _tenants(kind, every)
        columns = ["tenant_id", "id", "kind", "subject", "due_at", "period_seconds"]
        done = await session.orm.execute(
            insert(Job)
            .from_select(columns, wanted)
            .on_conflict_do_nothing(index_elements=["tenant_id", "kind", "subject"])
            .returning(Job.id)
        )
        made += len(done.all())
    return made


def _tenants(kind: JobKind, every: int) -> Select[tuple[object, ...]]:
    return select(
        Tenant.id,
        func.gen_random_uuid(),
        literal(kind.value),
        Tenant.id,
        func.clock_timestamp(),
        literal(every),
    ).where(Tenant.state == TenantState.ACTIVE)


def _vpgs(kind: JobKind, every: int) -> Select[tuple[object, ...]]:
    ended = (Lifecycle.DRAFT, Lifecycle.REMOVED)
    return select(
        Vpg.tenant_id,
        func.gen_random_uuid(),
        literal(kind.value),
        Vpg.id,
        func.clock_timestamp(),
        literal(every),
    ).where(Vpg.lifecycle.not_in(ended))


async def take_due(session: SystemSession) -> list[JobKey]:
    """What is due, nobody holds and the broker was not told of lately: now it is as told."""
    now = func.clock_timestamp()
    due = (
        select(Job.tenant_id, Job.id)
        .where(Job.due_at <= now, _is_free(), or_(Job.sent_at.is_(None), Job.sent_at < now - _TOLD))
        .order_by(Job.due_at)
        .limit(_DUE_MAX)
        .with_for_update(skip_locked=True)
    ).subquery()
    told = await session.orm.execute(
        update(Job)
        .where(Job.tenant_id == due.c.tenant_id, Job.id == due.c.id)
        .values(sent_at=now)
        .returning(Job.tenant_id, Job.id)
    )
    return [JobKey(row[0], row[1]) for row in told]


async def claim_job(session: SystemSession, key: JobKey) -> Claim | None:
    """Take its lease; None where it is not due or somebody has it."""
    now = func.clock_timestamp()
    taken = await session.orm.execute(
        update(Job)
        .where(_is(key), Job.due_at <= now, _is_free())
        .values(fence=Job.fence + 1, lease_until=now + _FIRST_LEASE)
        .returning(Job.kind, Job.subject, Job.fence, Job.failures)
    )
    row = taken.one_or_none()
    if row is None:
        return None
    claim = Claim(key, JobKind(row[0]), row[1], row[2], row[3])
    await renew_job(session, claim)
    return claim


async def renew_job(session: SystemSession, claim: Claim) -> bool:
    """Hold it longer; False where it is another's by now."""
    lease = timedelta(seconds=PERIODS[claim.kind].lease)
    return await _change(session, claim, lease_until=func.clock_timestamp() + lease)


async def finish_job(session: SystemSession, claim: Claim) -> bool:
    """It is done, and due again after its period; False where it is another's by now."""
    now = func.clock_timestamp()
    return await _change(
        session,
        claim,
        due_at=now + Job.period_seconds * literal(timedelta(seconds=1)),
        done_at=now,
        sent_at=None,
        lease_until=None,
        failures=0,
        error_code=None,
    )


async def fail_job(session: SystemSession, claim: Claim, code: str) -> bool:
    """It failed, and is due again after a while; False where it is another's by now."""
    wait = timedelta(seconds=retry_seconds(claim.failures + 1))
    return await _change(
        session,
        claim,
        due_at=func.clock_timestamp() + wait,
        sent_at=None,
        lease_until=None,
        failures=Job.failures + 1,
        error_code=code,
    )


async def forget_jobs(session: SystemSession, subjects: Iterable[UUID]) -> None:
    """These are gone: nothing is done for them any more."""
    await session.orm.execute(delete(Job).where(Job.subject.in_(list(subjects))))


def _is(key: JobKey) -> ColumnElement[bool]:
    return and_(Job.tenant_id == key.tenant_id, Job.id == key.id)


def _is_free() -> ColumnElement[bool]:
    return or_(Job.lease_until.is_(None), Job.lease_until < func.clock_timestamp())


async def _change(session: SystemSession, claim: Claim, **values: object) -> bool:
    done = await session.orm.execute(
        update(Job)
        .where(_is(claim.key), Job.fence == claim.fence)
        .values(**values)
        .returning(Job.id)
    )
    return done.first() is not None
