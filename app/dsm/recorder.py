"""Facts of hosts become rows: gathered, then a few statements for all hosts of a tenant at once.

What changed is written within a second; checkpoints wait for company, because thousands of groups
that take one every few seconds must not cost a row each.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.alerts.service import Raised, clear_alerts, raise_alerts
from app.checkpoints.merging import Taken
from app.checkpoints.recording import record_checkpoints
from app.checkpoints.state import CheckpointState
from app.database.sessions import Database, TenantSession
from app.dsm.health import Health, HealthRecord, capacity_class
from app.dsm.known import HostState, Marked, StatusKey, facts_json
from app.dsm.metrics import Metrics
from app.dsm.sources import ROWS_AT_ONCE, write_health, write_statuses
from app.dsm.trouble import Trouble
from app.events.ledger import Circumstances, Happening, write_ledger
from app.kit.ids import Kind, new_uuid, parse, show
from app.kit.problems import Problem
from app.vpgs.facts import Reported, record_held, record_statuses
from app.vpgs.state import Link, Sync
from host_agent.wire.control import Answer, GroupFacts

_TURN_SECONDS = 0.5
#: Of a tenant whose rows cannot be written, no more than this waits: facts repeat.
_WAITING_MAX = 20_000
DOWN, TWINS = "host.down", "host.identity_used_twice"
_SYNCS = {sync.value for sync in Sync}
_LINKS = {
    Health.UP: Link.CONNECTED,
    Health.DEGRADED: Link.CONNECTED,
    Health.DOWN: Link.DISCONNECTED,
}


#: One that waits is two objects and no more: a thousand hosts make twelve thousand a minute, and
#: Python's collector looks at each.
_Checkpoint = tuple[UUID, Marked] | Taken


@dataclass
class _Batch:
    """What waits of one tenant."""

    statuses: dict[UUID, tuple[HostState, StatusKey, int]] = field(default_factory=dict)
    held: dict[UUID, int] = field(default_factory=dict)
    taken: list[_Checkpoint] = field(default_factory=list)
    oldest_taken: float | None = None
    is_urgent: bool = False
    happenings: list[Happening] = field(default_factory=list)
    twins: dict[UUID, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class RecorderOptions:
    """`seconds`: how long checkpoints wait for company. `now` monotonic, `wall` this instant."""

    seconds: float
    now: Callable[[], float]
    wall: Callable[[], datetime]
    may_act: Callable[[], bool]
    trouble: Trouble


class Recorder:
    """Gathers, and writes in `run`."""

    def __init__(self, database: Database, options: RecorderOptions, metrics: Metrics) -> None:
        self._database, self._options, self._metrics = database, options, metrics
        self._waiting: dict[UUID, _Batch] = defaultdict(_Batch)

    def status(self, tenant_id: UUID, state: HostState, status: StatusKey, epoch: int) -> None:
        """A host's row is due."""
        batch = self._waiting[tenant_id]
        batch.statuses[state.host_id] = (state, status, epoch)
        batch.is_urgent = True

    def held(self, tenant_id: UUID, host_id: UUID, version: int) -> None:
        """A host has this version of its assignment."""
        batch = self._waiting[tenant_id]
        batch.held[host_id] = max(version, batch.held.get(host_id, 0))
        batch.is_urgent = True

    def happened(self, tenant_id: UUID, happening: Happening) -> None:
        """For the ledger."""
        batch = self._waiting[tenant_id]
        batch.happenings.append(happening)
        batch.is_urgent = True

    def twins(self, tenant_id: UUID, host_id: UUID, are_there: bool) -> None:
        """Two machines use a host's identity, or not any more."""
        batch = self._waiting[tenant_id]
        batch.twins[host_id] = are_there
        batch.is_urgent = True

    def marked(self, tenant_id: UUID, host_id: UUID, marked: Iterable[Marked]) -> None:
        """Checkpoints at their end."""
        self._take(tenant_id, [(host_id, one) for one in marked])

    def failed(self, tenant_id: UUID, asked: tuple[str, datetime], answer: Answer) -> None:
        """A checkpoint, (group, when), that a host could not take."""
        vpg_id, error = parse(Kind.VPG, asked[0]), answer.error
        said = {
            "code": error.code if error else "no_position",
            "message": error.message if error else "The host named no position.",
        }
        taken = Taken(
            vpg_id, new_uuid(asked[1]), asked[1], None, CheckpointState.FAILED, error=said
        )
        self._take(tenant_id, [taken])

    def _take(self, tenant_id: UUID, taken: Sequence[_Checkpoint]) -> None:
        batch = self._waiting[tenant_id]
        if batch.oldest_taken is None:
            batch.oldest_taken = self._options.now()
        batch.taken += taken
        del batch.taken[:-_WAITING_MAX]

    async def run(self) -> None:
        """Write what is due until cancelled."""
        while True:
            await asyncio.sleep(_TURN_SECONDS)
            if self._options.may_act():
                await self.write(is_last=False)

    async def write(self, *, is_last: bool) -> None:
        """Write what is due, or all."""
        due = [one for one, batch in self._waiting.items() if is_last or self._is_due(batch)]
        for tenant_id in due:
            batch = self._waiting.pop(tenant_id)
            try:
                await self._write_tenant(tenant_id, batch, is_last=is_last)
            except Problem as problem:
                if problem.retryable:
                    self._put_back(tenant_id, batch)
                else:
                    self._options.trouble.note("facts", tenant_id, problem)
            except Exception as error:  # noqa: BLE001 - one tenant's rows must not stop the others
                self._options.trouble.note("facts", tenant_id, error)

    def _is_due(self, batch: _Batch) -> bool:
        return batch.is_urgent or self._is_over(batch)

    def _put_back(self, tenant_id: UUID, batch: _Batch) -> None:
        newer = self._waiting[tenant_id]
        newer.statuses = {**batch.statuses, **newer.statuses}
        newer.held = {**batch.held, **newer.held}
        newer.twins = {**batch.twins, **newer.twins}
        newer.taken = (batch.taken + newer.taken)[-_WAITING_MAX:]
        newer.happenings = (batch.happenings + newer.happenings)[-_WAITING_MAX:]
        newer.oldest_taken, newer.is_urgent = batch.oldest_taken, True

    async def _write_tenant(self, tenant_id: UUID, batch: _Batch, *, is_last: bool) -> None:
        statuses = list(batch.statuses.values())
        is_over = is_last or self._is_over(batch)
        # A pack that is opened takes all that belongs into it.
        taken = sorted(batch.taken, key=_group_of) if is_over else []
        for start in range(0, max(1, len(statuses), len(taken)), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            async with self._database.tenant(tenant_id) as session:
                told = [_taken(one) for one in taken[part]]
                happenings = await self._enter(session, statuses[part], told)
                happenings += batch.happenings
                if start == 0:
                    happenings += await self._enter_held(session, batch.held)
                    happenings += await _twin_alerts(session, batch.twins, self._options.wall())
                await write_ledger(session, happenings, [], self._circumstances())
                await session.commit()
            batch.happenings = []  # told once, whatever fails from here on
        await self._write_health(statuses)
        if not is_over:
            self._keep(tenant_id, batch)

    def _is_over(self, batch: _Batch) -> bool:
        oldest = batch.oldest_taken
        return oldest is not None and self._options.now() - oldest >= self._options.seconds

    def _keep(self, tenant_id: UUID, batch: _Batch) -> None:
        """Checkpoints go on waiting although something else was urgent."""
        if batch.taken:
            newer = self._waiting[tenant_id]
            newer.taken = batch.taken + newer.taken
            newer.oldest_taken = batch.oldest_taken

    async def _enter(
        self,
        session: TenantSession,
        statuses: list[tuple[HostState, StatusKey, int]],
        taken: list[Taken],
    ) -> list[Happening]:
        now = self._options.wall()
        happenings: list[Happening] = []
        if statuses:
            await write_statuses(
                session, [self._row(state, status) for state, status, _ in statuses], now
            )
            self._metrics.row_writes.inc(len(statuses))
            reports = _reports(statuses)
            if reports:
                happenings += await record_statuses(session, reports, now)
            happenings += await _alerts(session, statuses, now)
        if taken:
            happenings += await record_checkpoints(session, taken, now)
        return happenings

    async def _enter_held(self, session: TenantSession, held: dict[UUID, int]) -> list[Happening]:
        happenings: list[Happening] = []
        for host_id, version in sorted(held.items()):
            if version:
                happenings += await record_held(session, host_id, version, self._options.wall())
        return happenings

    def _row(self, state: HostState, status: StatusKey) -> dict[str, Any]:
        silent = self._options.now() - state.seen_at
        seen_at = self._options.wall().timestamp() - silent
        return {
            "host_id": state.host_id,
            "health": status.health,
            "reason": status.reason,
            "tap": status.tap,
            "assignment_version": status.held_version,
            "seen_at": datetime.fromtimestamp(seen_at, UTC),
            "facts": facts_json(state.groups),
        }

    async def _write_health(self, statuses: list[tuple[HostState, StatusKey, int]]) -> None:
        """What others may know of these machines."""
        records = [
            HealthRecord(
                show(Kind.HOST, state.host_id),
                status.health,
                capacity_class(len(state.groups)),
                epoch,
                self._options.wall(),
            )
            for state, status, epoch in statuses
        ]
        if records:
            async with self._database.system() as session:
                await write_health(session, records)
                await session.commit()

    def _circumstances(self) -> Circumstances:
        return Circumstances("dsm", "", "", self._options.wall())


def _group_of(waiting: _Checkpoint) -> str:
    return show(Kind.VPG, waiting.vpg_id) if isinstance(waiting, Taken) else waiting[1].vpg


def _taken(waiting: _Checkpoint) -> Taken:
    if isinstance(waiting, Taken):
        return waiting
    host_id, marked = waiting
    return Taken(
        vpg_id=parse(Kind.VPG, marked.vpg),
        id=UUID(hex=marked.id),
        expected_at=marked.expected_at,
        taken_at=datetime.fromtimestamp(marked.source_time_ns / 1e9, UTC),
        state=CheckpointState.COMPLETE if marked.is_complete else CheckpointState.PENDING,
        positions={host_id: marked.seq},
        response_us=marked.response_us,
    )


def _reports(statuses: list[tuple[HostState, StatusKey, int]]) -> dict[UUID, Reported]:
    """By group, from the hosts at hand. A group on one host is the rule of this engine."""
    reports: dict[UUID, Reported] = {}
    for state, status, _ in statuses:
        for facts in state.groups:
            reports[parse(Kind.VPG, facts.vpg)] = _reported(facts, status.health)
    return reports


def _reported(facts: GroupFacts, health: Health) -> Reported:
    sync = Sync(facts.sync) if facts.sync in _SYNCS else Sync.NONE
    return Reported(sync, _LINKS[health], facts.backlog_bytes, facts.gap_reason)


async def _alerts(
    session: TenantSession, statuses: list[tuple[HostState, StatusKey, int]], now: datetime
) -> list[Happening]:
    down = [
        Raised(
            DOWN,
            "error",
            show(Kind.HOST, state.host_id),
            "The host is not heard of. What it protects goes on only if its agent runs.",
        )
        for state, status, _ in statuses
        if status.health == Health.DOWN
    ]
    heard = {
        (DOWN, show(Kind.HOST, state.host_id))
        for state, status, _ in statuses
        if status.health != Health.DOWN
    }
    return [*await raise_alerts(session, down, now), *await clear_alerts(session, heard, now)]


async def _twin_alerts(
    session: TenantSession, twins: dict[UUID, bool], now: datetime
) -> list[Happening]:
    raised = [
        Raised(
            TWINS,
            "error",
            show(Kind.HOST, host_id),
            "Two machines use this host's identity and put each other out. Only one of them is the "
            "host: stop the copy, or revoke the host and let it join anew.",
        )
        for host_id, are_there in twins.items()
        if are_there
    ]
    over = {(TWINS, show(Kind.HOST, host)) for host, are_there in twins.items() if not are_there}
    return [*await raise_alerts(session, raised, now), *await clear_alerts(session, over, now)]
