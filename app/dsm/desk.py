"""What managers ask for that takes time: reads in a tenant's scope, calls to the key service.

Each request is a task of its own, a few at once; its answer goes to the manager that then owns the
place, if this process still has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from app.database.sessions import Database
from app.datanodes.service import doors_of_tenant
from app.dsm import assignments
from app.dsm.assignments import Place, Route
from app.dsm.fleet import Fleet
from app.dsm.known import HostState, Marked, StatusKey
from app.dsm.recorder import Recorder
from app.dsm.sources import known_hosts
from app.dsm.trouble import Trouble
from app.events.ledger import Circumstances, Happening, write_ledger
from app.keys.port import KeyService
from app.keys.service import issue_data_key
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models.tenants import PROVIDER_ID
from app.rights.orders import settle_failure
from app.vpgs.assigning import load_assignment
from app.vpgs.following import receive_inventory
from host_agent.wire import control, keyrequest
from host_agent.wire.control import (
    Answer,
    Assignment,
    DataKey,
    DataKeyRequest,
    Event,
    Inventory,
    Progress,
)
from host_agent.wire.errors import HoldfastError
from host_agent.wire.keyrequest import to_builtins

_AT_ONCE = 6
_RETRY_SECONDS = 0.5
_WAITING_MAX = 5_000
_GREETED_AT_ONCE = 10


@dataclass(frozen=True)
class DeskTools:
    """`doors`: of data nodes that the deployment does not list."""

    database: Database
    keys: KeyService
    recorder: Recorder
    doors: Sequence[str]
    wall: Callable[[], datetime]
    trouble: Trouble


class WorkDesk:
    """A Desk over the database. `close` ends what is going on."""

    def __init__(self, tools: DeskTools, fleet: Fleet) -> None:
        self._tools, self._fleet = tools, fleet
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: dict[Place, set[UUID] | None] = {}
        self.on_progress: Callable[[Place, UUID, Progress], None] = lambda *_: None

    async def close(self) -> None:
        """End what is going on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(
        self, place: Place, work: Callable[[], Awaitable[None]], *, repeat: bool = True
    ) -> None:
        if len(self._tasks) < _WAITING_MAX:
            task = asyncio.ensure_future(self._run(place, work, repeat))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, place: Place, work: Callable[[], Awaitable[None]], repeat: bool) -> None:
        while True:
            try:
                async with self._slots:
                    return await work()
            except Exception as error:  # noqa: BLE001 - one tenant's rows must not stop the others
                if not (repeat and isinstance(error, Problem) and error.retryable):
                    self._tools.trouble.note("request", place.tenant_id, error)
                    return None
            await asyncio.sleep(_RETRY_SECONDS)

    # ------------------------------------------------------------------ hosts

    def hosts_wanted(self, place: Place, hosts: set[UUID] | None) -> None:
        if place in self._wanted:
            waiting = self._wanted[place]
            self._wanted[place] = None if waiting is None or hosts is None else waiting | hosts
            return
        self._wanted[place] = hosts
        self._start(place, lambda: self._load(place))

    async def _load(self, place: Place) -> None:
        only = self._wanted.get(place)
        try:
            async with self._tools.database.tenant(place.tenant_id) as session:
                self._wanted.pop(place, None)
                async for found in known_hosts(session, place.site_id, only):
                    for start in range(0, len(found), _GREETED_AT_ONCE):
                        manager = self._fleet.manager_of(place)
                        if manager is None:
                            return
                        manager.learn(found[start : start + _GREETED_AT_ONCE])
                        await asyncio.sleep(0)
        except Problem:
            self._wanted[place] = only if place not in self._wanted else None
            raise

    def assignment_wanted(self, place: Place, host_id: UUID) -> None:
        async def load() -> None:
            async with self._tools.database.tenant(place.tenant_id) as session:
                doors = await doors_of_tenant(session, self._tools.doors)
                found = await load_assignment(session, host_id, doors)
            manager = self._fleet.manager_of(place)
            if manager is not None:
                manager.push(host_id, msgspec.convert(found, Assignment))

        self._start(place, load)

    def epoch_seen(self, route: Route, epoch: int) -> None:
        async def rise() -> None:
            async with self._tools.database.system() as session:
                ours = await assignments.raise_epoch(session, route, epoch)
                await session.commit()
            manager = self._fleet.manager_of(route.place)
            if manager is not None and manager.route == route and ours is not None:
                manager.raised(ours)

        self._start(route.place, rise)

    def inventory_came(self, place: Place, host_id: UUID, inventory: Inventory) -> None:
        async def enter() -> None:
            now = self._tools.wall()
            try:
                async with self._tools.database.tenant(place.tenant_id) as session:
                    message = msgspec.to_builtins(inventory)
                    happenings = await receive_inventory(session, host_id, message, now)
                    await write_ledger(session, happenings, [], _by(host_id, now))
                    await session.commit()
            except Problem:
                raise
            except HoldfastError as error:
                self._tell(place, host_id, "hosts.inventory_refused", {"reason": error.message})
                return
            manager = self._fleet.manager_of(place)
            if manager is not None:
                manager.inventory_kept(host_id, inventory.digest)
                self.hosts_wanted(place, {host_id})

        self._start(place, enter)

    def key_asked(self, place: Place, host_id: UUID, request: DataKeyRequest) -> None:
        async def ask() -> None:
            try:
                asked = keyrequest.parse(
                    msgspec.json.decode(request.asked), keyrequest.DataKeyRequest
                )
                async with self._tools.database.tenant(place.tenant_id) as session:
                    made = await issue_data_key(session, self._tools.keys, host_id, asked)
                answer = msgspec.Raw(msgspec.json.encode(to_builtins(made)))
                message = DataKey(request.request, answer)
            except HoldfastError as error:
                message = DataKey(request.request, error=control.failure_of(error))
            except (msgspec.DecodeError, RecursionError):
                return
            manager = self._fleet.manager_of(place)
            if manager is not None:
                manager.reply(host_id, message)

        self._start(place, ask, repeat=False)

    # ------------------------------------------------------------------ facts

    def status_changed(self, route: Route, state: HostState, status: StatusKey) -> None:
        self._tools.recorder.status(route.place.tenant_id, state, status, route.epoch)

    def marked(self, place: Place, host_id: UUID, marked: Iterable[Marked]) -> None:
        self._tools.recorder.marked(place.tenant_id, host_id, marked)

    def mark_failed(self, place: Place, vpg: str, expected_at: datetime, answer: Answer) -> None:
        self._tools.recorder.failed(place.tenant_id, (vpg, expected_at), answer)

    def held(self, place: Place, host_id: UUID, version: int) -> None:
        if version:
            self._tools.recorder.held(place.tenant_id, host_id, version)

    def happened(self, place: Place, host_id: UUID, event: Event) -> None:
        self._tell(place, host_id, f"host.{event.kind}", {"what": event.subject, **event.data})
        if event.kind == control.PLACEMENT_FAILED and place.tenant_id == PROVIDER_ID:
            self._start(place, lambda: settle_failure(self._tools.database, host_id, event))

    def progressed(self, place: Place, host_id: UUID, progress: Progress) -> None:
        self.on_progress(place, host_id, progress)

    def _tell(self, place: Place, host_id: UUID, kind: str, data: dict[str, object]) -> None:
        happening = Happening(kind, show(Kind.HOST, host_id), data)
        self._tools.recorder.happened(place.tenant_id, happening)


def _by(host_id: UUID, now: datetime) -> Circumstances:
    return Circumstances(show(Kind.HOST, host_id), "", "", now)
