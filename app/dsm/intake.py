"""Commands of the table become commands to hosts, and their answers ends of operations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from app.checkpoints.merging import Taken
from app.checkpoints.recording import record_checkpoints
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.database.sessions import Database, TenantSession
from app.dsm.assignments import Place
from app.dsm.commands import CommandKind, CommandState, Waiting, mark, waiting_commands
from app.dsm.desk import WorkDesk
from app.dsm.fleet import Fleet
from app.dsm.metrics import Metrics
from app.dsm.trouble import Trouble
from app.events.ledger import Circumstances, Happening, write_ledger
from app.kit.ids import Kind, parse, show
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.kit.transitions import IllegalTransition
from app.models import Operation, Vpg
from app.models.base import key_of
from app.operations.service import ORDER, advance, fail, succeed
from app.rights.orders import order_of, place_body, settle_placing, settle_withdrawal
from app.rights.places import check_destination
from app.vpgs.assigning import hosts_of
from host_agent.wire import control
from host_agent.wire.control import Answer, Body, Failure, Progress
from host_agent.wire.errors import HoldfastError

#: How long a command waits for its host, seconds: after that its caller should know.
_PATIENCE_SECONDS: dict[CommandKind, float] = {CommandKind.RESTORE: 600.0}
_PATIENCE_DEFAULT_SECONDS = 60.0
_ANSWER_SECONDS_MAX: dict[CommandKind, float] = {CommandKind.RESTORE: 7 * 86_400.0}
_ANSWER_DEFAULT_SECONDS = 120.0
_STORE_SECONDS_MAX = 120.0
_OF_PLACEMENTS = (CommandKind.PLACE, CommandKind.WITHDRAW)


class HostUnreachable(HoldfastError):
    """A command's host was not connected for too long, or did not answer."""

    code = "host_unreachable"


class CommandUnreadable(HoldfastError):
    """What a command is about could not be read."""

    code = "command_unreadable"


class NotStored(HoldfastError):
    """A checkpoint was marked, but the journal does not have it."""

    code = "not_stored"


class CommandRefused(HoldfastError):
    """A host could not do what it was told; the code is the host's own."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, hint=failure.hint, retryable=failure.retryable)
        self.code = failure.code


@dataclass
class Errand:
    """A command that this process has in hand."""

    waiting: Waiting
    bodies: dict[UUID, Body] = field(default_factory=dict)
    sent: dict[UUID, int] = field(default_factory=dict)
    sent_at: float = 0.0
    answers: dict[UUID, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class IntakeTools:
    """`process` names the lease; `now` is monotonic, `wall` this instant."""

    database: Database
    process: Callable[[], UUID]
    may_act: Callable[[], bool]
    now: Callable[[], float]
    wall: Callable[[], datetime]
    poll_seconds: float
    sealer: Sealer
    metrics: Metrics
    trouble: Trouble


class Intake:
    """Polls, sends, and enters how it ended."""

    def __init__(self, tools: IntakeTools, fleet: Fleet, desk: WorkDesk) -> None:
        self._tools, self._fleet, self._desk = tools, fleet, desk
        self._in_hand: dict[UUID, Errand] = {}
        self._by_number: dict[tuple[Place, UUID, int], Errand] = {}
        self._progress: dict[UUID, Progress] = {}
        self.woken = asyncio.Event()
        desk.on_progress = self._progressed

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.woken.wait(), self._tools.poll_seconds)
            self.woken.clear()
            if self._tools.may_act():
                await self.turn()

    async def turn(self) -> None:
        """Once: take what is new, send what can be sent, enter what is over."""
        try:
            await self._take()
            for errand in list(self._in_hand.values()):
                await self._advance(errand)
            await self._enter_progress()
        except Problem as problem:
            if not problem.retryable:
                raise

    def drop_place(self, place: Place) -> None:
        """Another process has the place, and takes its commands anew."""
        for errand in [one for one in self._in_hand.values() if one.waiting.place == place]:
            self._forget(errand)

    async def _take(self) -> None:
        async with self._tools.database.system() as session:
            found = await waiting_commands(session, self._tools.process(), list(self._in_hand))
        for waiting in found:
            if waiting.place not in self._fleet.managers:
                continue
            errand = Errand(waiting)
            self._in_hand[waiting.id] = errand
            if waiting.kind == CommandKind.ASSIGN:
                self._desk.hosts_wanted(waiting.place, {waiting.subject})
                await self._end(errand, None)
                continue
            try:
                async with self._tools.database.tenant(waiting.place.tenant_id) as session:
                    errand.bodies = await bodies_of(session, waiting, self._tools.sealer)
            except Problem as problem:
                if problem.retryable:
                    self._forget(errand)
                    raise
                await self._end(errand, problem)
                continue
            except Exception as error:  # noqa: BLE001 - one tenant's rows must not stop the others
                self._tools.trouble.note("command", waiting.place.tenant_id, error)
                await self._end(errand, CommandUnreadable("The command's input makes no sense."))
                continue
            if not errand.bodies:
                await self._end(errand, HostUnreachable("No host has anything to do for it."))

    async def _advance(self, errand: Errand) -> None:
        if errand.waiting.id not in self._in_hand:
            return
        refused = [one for one in errand.answers.values() if one.outcome == "failed"]
        if refused:
            failure = refused[0].error or Failure("failed", "The host gave no reason.")
            await self._end(errand, CommandRefused(failure))
        elif len(errand.answers) == len(errand.bodies):
            if errand.waiting.kind != CommandKind.CHECKPOINT or self._is_stored(errand):
                await self._end(errand, None)
            elif self._tools.now() - errand.sent_at > _STORE_SECONDS_MAX:
                await self._end(errand, NotStored("The journal did not get it in time."))
        elif len(errand.sent) < len(errand.bodies):
            await self._send(errand)
        elif self._tools.now() - errand.sent_at > _answer_seconds(errand.waiting.kind):
            await self._end(errand, HostUnreachable("The host did not answer.", retryable=True))

    def _is_stored(self, errand: Errand) -> bool:
        """Whether every host's journal has what the host marked, as its heartbeats say."""
        manager = self._fleet.manager_of(errand.waiting.place)
        vpg = show(Kind.VPG, errand.waiting.subject)
        return manager is not None and all(
            manager.is_stored(host_id, vpg, answer) for host_id, answer in errand.answers.items()
        )

    async def _send(self, errand: Errand) -> None:
        waiting = errand.waiting
        manager = self._fleet.manager_of(waiting.place)
        if manager is None:
            self._forget(errand)
            return
        for host_id, body in errand.bodies.items():
            if host_id in errand.sent:
                continue
            number = manager.command(host_id, body, partial(self._answered, errand, host_id))
            if number is not None:
                errand.sent[host_id], errand.sent_at = number, self._tools.now()
                self._by_number[waiting.place, host_id, number] = errand
        if len(errand.sent) == len(errand.bodies):
            async with self._tools.database.system() as session:
                await mark(session, [waiting], CommandState.SENT)
                await session.commit()
            return
        patience = _PATIENCE_SECONDS.get(waiting.kind, _PATIENCE_DEFAULT_SECONDS)
        if (self._tools.wall() - waiting.created_at).total_seconds() > patience:
            error = HostUnreachable(
                "The host was not connected.", hint="Start its agent and try again.", retryable=True
            )
            await self._end(errand, error)

    def _answered(self, errand: Errand, host_id: UUID, answer: Answer | None) -> None:
        number = errand.sent.get(host_id)
        if number is not None:
            self._by_number.pop((errand.waiting.place, host_id, number), None)
        if answer is None:
            errand.sent.pop(host_id, None)  # it left: told again when it is back
            return
        errand.answers[host_id] = answer
        self.woken.set()

    def _progressed(self, place: Place, host_id: UUID, progress: Progress) -> None:
        errand = self._by_number.get((place, host_id, progress.number))
        if errand is not None:
            self._progress[errand.waiting.id] = progress

    async def _enter_progress(self) -> None:
        """At most once a turn: a host may tell more often than anybody reads."""
        told, self._progress = self._progress, {}
        for command_id, progress in told.items():
            errand = self._in_hand.get(command_id)
            operation_id = errand.waiting.operation_id if errand else None
            if errand is None or operation_id is None:
                continue
            async with self._tools.database.tenant(errand.waiting.place.tenant_id) as session:
                try:
                    await advance(
                        session, operation_id, self._tools.wall(), progress=progress.share
                    )
                except IllegalTransition:
                    continue
                await session.commit()

    async def _end(self, errand: Errand, error: HoldfastError | None) -> None:
        """Enter how it came out: the operation in the tenant's scope, then the command."""
        waiting = errand.waiting
        if waiting.kind in _OF_PLACEMENTS:
            await self._settle(waiting, error)
        if waiting.operation_id is not None and waiting.kind != CommandKind.ASSIGN:
            await self._end_operation(errand, waiting.operation_id, error)
        state = CommandState.DONE if error is None else CommandState.FAILED
        async with self._tools.database.system() as session:
            await mark(session, [waiting], state)
            await session.commit()
        self._tools.metrics.commands.inc()
        self._forget(errand)

    async def _settle(self, waiting: Waiting, error: HoldfastError | None) -> None:
        """A placement is of another tenant than its command, which is the host's owner's."""
        async with self._tools.database.tenant(waiting.place.tenant_id) as session:
            given = await _input(session, waiting)
        database, order = self._tools.database, order_of(given)
        if waiting.kind == CommandKind.PLACE:
            await settle_placing(database, order, error)
        else:
            await settle_withdrawal(database, order, error, self._tools.wall())

    async def _end_operation(
        self, errand: Errand, operation_id: UUID, error: HoldfastError | None
    ) -> None:
        now, waiting, answers = self._tools.wall(), errand.waiting, errand.answers
        taken_seconds = self._tools.now() - errand.sent_at if errand.sent else 0.0
        outcome = {show(Kind.HOST, host): one.result or {} for host, one in answers.items()}
        happenings: list[Happening] = []
        async with self._tools.database.tenant(waiting.place.tenant_id) as session:
            try:
                await advance(session, operation_id, now - timedelta(seconds=taken_seconds))
                if waiting.kind == CommandKind.CHECKPOINT:
                    taken = await _checkpoint_taken(session, waiting, answers, error)
                    happenings += await record_checkpoints(session, [taken], now)
                happenings.append(
                    await succeed(session, operation_id, now, {"hosts": outcome})
                    if error is None
                    else await fail(session, operation_id, now, error)
                )
            except IllegalTransition:
                return  # it had ended: cancelled, or entered by the manager before us
            await write_ledger(session, happenings, [], Circumstances("dsm", "", "", now))
            await session.commit()

    def _forget(self, errand: Errand) -> None:
        self._in_hand.pop(errand.waiting.id, None)
        for host_id, number in errand.sent.items():
            self._by_number.pop((errand.waiting.place, host_id, number), None)


def _answer_seconds(kind: CommandKind) -> float:
    return _ANSWER_SECONDS_MAX.get(kind, _ANSWER_DEFAULT_SECONDS)


async def bodies_of(session: TenantSession, waiting: Waiting, sealer: Sealer) -> dict[UUID, Body]:
    """What is sent to which host for a command; Problem."""
    given = await _input(session, waiting)
    if waiting.kind == CommandKind.DISCOVER:
        return {waiting.subject: control.Discover()}
    if waiting.kind == CommandKind.RESTORE:
        await check_destination(session, waiting.subject)
        return {waiting.subject: msgspec.convert(given[ORDER], control.Restore)}
    if waiting.kind == CommandKind.PLACE:
        return {waiting.subject: place_body(given, sealer)}
    if waiting.kind == CommandKind.WITHDRAW:
        return {waiting.subject: control.Withdraw(order_of(given).tenant)}
    hosts = await hosts_of(session, waiting.subject)
    body = await _group_body(session, waiting, given)
    return dict.fromkeys(sorted(hosts), body)


async def _group_body(session: TenantSession, waiting: Waiting, given: Mapping[str, Any]) -> Body:
    vpg = show(Kind.VPG, waiting.subject)
    if waiting.kind == CommandKind.PAUSE:
        return control.Pause(vpg)
    if waiting.kind == CommandKind.RESUME:
        return control.Resume(vpg)
    if waiting.kind == CommandKind.FORCE_SYNC:
        return control.ForceSync(vpg, given.get("disk"), bool(given.get("full")))
    if waiting.kind == CommandKind.CHECKPOINT:
        checkpoint_id = _checkpoint_id(given).hex
        return control.Checkpoint(vpg, checkpoint_id, given.get("tag"), is_awaited=True)
    row = await session.orm.get_one(Vpg, key_of(session.tenant_id, waiting.subject))
    return control.Limit(
        vpg, row.settings["replication_mbit_per_s"], row.settings["sync_mbit_per_s"]
    )


def _checkpoint_id(given: Mapping[str, Any]) -> UUID:
    return parse(Kind.CHECKPOINT, given["checkpoint"])


async def _checkpoint_taken(
    session: TenantSession,
    waiting: Waiting,
    answers: Mapping[UUID, Answer],
    error: HoldfastError | None,
) -> Taken:
    """The row of a checkpoint that somebody asked for."""
    given = await _input(session, waiting)
    results = {host_id: answer.result or {} for host_id, answer in answers.items()}
    times = [int(one["source_time_ns"] or 0) for one in results.values() if "source_time_ns" in one]
    return Taken(
        vpg_id=waiting.subject,
        id=_checkpoint_id(given),
        expected_at=waiting.created_at,
        taken_at=datetime.fromtimestamp(min(times) / 1e9, UTC) if times and not error else None,
        state=CheckpointState.COMPLETE if error is None else CheckpointState.FAILED,
        kind=CheckpointKind.TAGGED,
        positions={host: int(one["seq"] or 0) for host, one in results.items() if "seq" in one},
        tag=given.get("tag"),
        error=None if error is None else error.as_dict(),
        operation_id=waiting.operation_id,
    )


async def _input(session: TenantSession, waiting: Waiting) -> dict[str, Any]:
    if waiting.operation_id is None:
        return {}
    key = key_of(session.tenant_id, waiting.operation_id)
    return (await session.orm.get_one(Operation, key)).input
