"""A host that its manager drives: what was assigned runs, with the manager or without it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from host_agent import __version__
from host_agent.control import enrol, inventory
from host_agent.control.agent import Agent
from host_agent.control.applying import Applier
from host_agent.control.assignment import address_of, addresses_of, check_assignment
from host_agent.control.commands import Commands
from host_agent.control.config import AgentConfig, GroupConfig, IngestConfig
from host_agent.control.errors import Busy, Managed, StateUnusable
from host_agent.control.facts import Reporter
from host_agent.control.host_settings import HostSettings, InventoryConfig
from host_agent.control.keydesk import KeyDesk
from host_agent.control.manager_link import ControlDoors, ManagerLink
from host_agent.control.orders import Orders
from host_agent.control.reach import Reach
from host_agent.control.renewal import Renewal
from host_agent.control.restoring import Restoring
from host_agent.control.sealed_keys import SealedKeys, load_seal
from host_agent.control.state_dir import StateDir, usable, write_durably
from host_agent.control.tap_client import Fields
from host_agent.stream import link
from host_agent.stream.ports import DataKey
from host_agent.wire import control
from host_agent.wire.control import (
    Answer,
    Assignment,
    AssignmentPush,
    Checkpoint,
    Command,
    Event,
    FromManager,
    Heartbeat,
    Hello,
    Progress,
    Restore,
    Taken,
    Welcome,
)
from host_agent.wire.control import (
    DataKey as DataKeyAnswer,
)
from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import Identity

_log = logging.getLogger("holdfast.agent")

STATE = "state"
#: How often machines and disks are looked for: whoever made one waits for it in the lists. What has
#: changed is sent at once, all of it now and then: nothing says that a message was lost on its way.
_INVENTORY_SECONDS, _LOOKS_A_REPEAT = 10.0, 3
_HEARTBEAT_SECONDS = 10.0
#: News that somebody waits for is told without waiting for the next heartbeat, this often at most;
#: that the journal has a checkpoint is such news for this long.
_NEWS_SECONDS_MIN, _AWAITED_SECONDS_MAX = 0.5, 60.0
_KEYS_SECONDS = 5.0
_RESTART_SECONDS = 5.0
#: Commands that are being carried out. A manager that asks for more is told so.
_COMMANDS_MAX = 256
#: What only the manager may change here: the next look at the assignment would undo it.
_MANAGERS_OWN = ("attach", "detach", "pause", "limit")


@dataclass(frozen=True)
class ManagedSettings:
    """Where the identity is, what a manager may reach, and memory for frames, bytes."""

    directory: Path
    host: HostSettings
    inventory: InventoryConfig
    frame_memory_bytes: int = 36 << 20


class ManagedHost:
    """One tenant on this host. Make it, `start` it, `stop` it. For one loop."""

    def __init__(self, settings: ManagedSettings, state: StateDir) -> None:
        self.identity = enrol.load_identity(settings.directory)
        self._settings, self._state = settings, state
        self._seal = load_seal(state.path / "seal.key")
        self._keys: dict[str, SealedKeys] = {}
        self.agent = Agent(self._config(), state, self._open_keys)
        means = self.agent.means
        self.reach = Reach(settings.inventory)
        self.applier = Applier(self.agent, state, self.reach)
        self.orders = Orders(state.path / "orders.json", means.offload)
        pem = settings.directory / enrol.PEM
        self._desk = KeyDesk(pem, self._deliver, means.clock.monotonic)
        doors = ControlDoors(self._addresses, settings.directory / enrol.ROOT, pem)
        self.link = ManagerLink(doors, self, means.clock, means.random)
        self.commands = Commands(self.agent, self.applier, self._discover)
        credentials = link.Credentials(settings.directory / enrol.ROOT, pem, pem)
        self.commands.add_long(Restore, Restoring(credentials, self.reach).run)
        self.renewal = Renewal(settings.directory, means.clock, means.random, means.offload)
        self._reporter = Reporter(self.agent)
        self._assignment = load_assignment(state.path / "assignment.json")
        self._heartbeat_seconds = _HEARTBEAT_SECONDS
        self._known_inventory: str | None = None
        #: What else is to be told, at which time (ns); whether the manager is a new one.
        self.events: Callable[..., Iterable[Event]] = lambda *_, **__: ()
        self._is_new_manager = False
        self._is_welcome = asyncio.Event()
        self._news = asyncio.Event()
        self.agent.on_change = self._news.set
        self._keys_wanted = asyncio.Event()
        self._desk.on_wanted = self._keys_wanted.set
        self._tasks: set[asyncio.Task[None]] = set()
        self._commanded: set[asyncio.Task[None]] = set()

    def _config(self) -> AgentConfig:
        facts, directory = self.identity.facts, self._settings.directory
        root, pem = directory / enrol.ROOT, directory / enrol.PEM
        return AgentConfig(
            path=directory,
            tenant=str(facts["tenant_id"]),
            host=str(facts["host_id"]),
            state_dir=self._state.path,
            socket=self._state.path / "agent.sock",
            ingest=IngestConfig((), None, root, pem, pem),
            journal=None,
            tap=self._settings.host.tap,
            groups=(),
            spool=self._settings.host.spool,
            frame_memory_bytes=self._settings.frame_memory_bytes,
        )

    def _addresses(self) -> tuple[tuple[str, int], ...]:
        named = self._settings.host.control
        given = named or enrol.load_identity(self._settings.directory).control_doors
        return tuple(address_of(door) for door in given)

    # --- its life

    def start(self) -> None:
        """Go on with what was assigned, and dial the manager."""
        self.agent.start()
        if self._assignment is not None:
            self._apply(self._assignment)
        for work in (
            self.applier.run,
            self.link.run,
            self.renewal.run,
            self._beat,
            self._look_around,
            self._ask_for_keys,
        ):
            self._spawn(self._keep_running(work), self._tasks)

    async def stop(self) -> None:
        """Say goodbye everywhere and end."""
        for tasks in (self._tasks, self._commanded):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.agent.stop()

    async def wipe(self) -> bool:
        """Detach all that is here and forget its keys; False if a machine still uses a disk.

        In place of `start`.
        """
        return await self.applier.drop_all()

    def _spawn(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_tell_defect)

    async def _keep_running(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A defect or a full disk in one part must not end the others."""
        while True:
            task = asyncio.create_task(work())
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            _tell_defect(task)
            await asyncio.sleep(_RESTART_SECONDS)

    # --- what the manager says

    def hello(self) -> Hello:
        """The first message of a connection."""
        epoch, number = self.orders.highest
        held = self._assignment.version if self._assignment else 0
        return Hello(__version__, epoch, number, held, self.agent.means.clock.wall_ns())

    def on_welcome(self, welcome: Welcome) -> None:
        """A manager has us: it hears everything that it may not know."""
        self._heartbeat_seconds = welcome.heartbeat_seconds
        self._known_inventory = welcome.inventory
        self._is_new_manager = True
        for answer in self.orders.waiting:
            self.link.send(answer)
        self._desk.connected()
        self._keys_wanted.set()
        self._is_welcome.set()

    def on_lost(self) -> None:
        """The connection is gone; replication goes on."""
        self._is_welcome.clear()

    def on_message(self, message: FromManager) -> None:
        """Anything else that a manager says; WireError ends the connection."""
        match message:
            case Welcome():
                self.on_welcome(message)
            case Command():
                self._obey(message)
            case AssignmentPush():
                self._obey(message)
            case Taken():
                self.orders.taken(message.epoch, message.number)
            case DataKeyAnswer():
                self._desk.answered(message)

    def _obey(self, message: Command | AssignmentPush) -> None:
        if len(self._commanded) < _COMMANDS_MAX:
            self._spawn(self._carry_out(message), self._commanded)
        else:
            error = Busy(f"This host carries out {_COMMANDS_MAX} commands.", retryable=True)
            self.link.send(_failed(message, error))

    async def _carry_out(self, message: Command | AssignmentPush) -> None:
        try:
            await self.orders.take(message.epoch, message.number)
        except HoldfastError as error:
            self.link.send(_failed(message, error))
            return
        body = None
        try:
            if isinstance(message, Command):
                body = control.body_of(message)
                result = dict(await self.commands.do(body, partial(self._tell, message)))
            else:
                result = await self._assign(message.assignment)
            answer = Answer(message.epoch, message.number, "done", result)
        except HoldfastError as error:
            answer = _failed(message, error)
        with contextlib.suppress(StateUnusable):
            # What cannot be kept is said all the same, once.
            await self.orders.finish(answer)
        self.link.send(answer)
        if isinstance(body, Checkpoint) and body.is_awaited and answer.outcome == "done":
            self._spawn(self._await_stored(body.vpg, answer.result or {}), self._tasks)

    async def _await_stored(self, vpg: str, marked: Mapping[str, Any]) -> None:
        group = self.agent.groups.get(vpg)
        if group is None:
            return
        with contextlib.suppress(TimeoutError, HoldfastError):
            async with asyncio.timeout(_AWAITED_SECONDS_MAX):
                generation = bytes.fromhex(marked["generation"])
                await group.the_stream().wait_stored(generation, marked["seq"])
                self._news.set()

    def _tell(self, message: Command, share: float, step: str) -> None:
        self.link.send(Progress(message.epoch, message.number, share, step))

    # --- the assignment

    async def _assign(self, assignment: Assignment) -> dict[str, Any]:
        config = self.agent.config
        check_assignment(assignment, config.tenant, config.host)
        path, data = self._state.path / "assignment.json", msgspec.json.encode(assignment)
        await self.agent.means.offload(lambda: write_durably(path, data))
        self._assignment = assignment
        self._apply(assignment)
        return {"version": assignment.version}

    def _apply(self, assignment: Assignment) -> None:
        ingest = replace(
            self.agent.config.ingest,
            addresses=addresses_of(assignment),
            server_name=assignment.server_name,
        )
        if ingest != self.agent.config.ingest:
            self.agent.set_ingest(ingest)
        names = {group.vpg for group in assignment.groups}
        self.commands.forget(names)
        for name in [name for name in self._keys if name not in names]:
            self._desk.forget(name)
            del self._keys[name]
        self.applier.want(assignment)

    # --- keys

    def _open_keys(self, group: GroupConfig, identity: Identity, folder: Path) -> SealedKeys:
        keys = SealedKeys(folder, self._seal, identity, self._desk.want)
        self._keys[group.name] = keys
        return keys

    def _deliver(self, identity: Identity, generation: bytes, key: DataKey) -> None:
        self._keys[identity.group].keep(generation, key)
        group = self.agent.groups.get(identity.group)
        if group is not None:
            group.nudge()

    async def _ask_for_keys(self) -> None:
        while True:
            await self._is_welcome.wait()
            self._keys_wanted.clear()
            for request in self._desk.due():
                self.link.send(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KEYS_SECONDS):
                    await self._keys_wanted.wait()

    # --- facts

    async def _beat(self) -> None:
        while True:
            await self._is_welcome.wait()
            self._news.clear()
            is_up, groups = await self._reporter.report(self.applier.disks())
            now = self.agent.means.clock.wall_ns()
            self.link.send(Heartbeat(now, "up" if is_up else "down", groups))
            await asyncio.sleep(min(_NEWS_SECONDS_MIN, self._heartbeat_seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds - _NEWS_SECONDS_MIN):
                    await self._news.wait()

    async def _look_around(self) -> None:
        for look in itertools.count():
            await self._is_welcome.wait()
            found = await inventory.look(self.agent, self.reach)
            is_due = found.digest != self._known_inventory or look % _LOOKS_A_REPEAT == 0
            if is_due and self.link.send(found):
                self._known_inventory = found.digest
            self._tell_events()
            await asyncio.sleep(_INVENTORY_SECONDS)

    def _tell_events(self) -> None:
        is_new, self._is_new_manager = self._is_new_manager, False
        now = self.agent.means.clock.wall_ns()
        for event in self.events(now, is_new_manager=is_new):
            self.link.send(event)

    async def _discover(self) -> Mapping[str, Any]:
        found = await inventory.look(self.agent, self.reach)
        if self.link.send(found):
            self._known_inventory = found.digest
        disks = sum(len(machine.disks) for machine in found.machines)
        return {"machines": len(found.machines), "disks": disks}

    # --- the local socket

    async def command(self, request: Fields) -> Fields:
        """What somebody on this host asks; HoldfastError."""
        verb = request.get("do")
        if verb in _MANAGERS_OWN:
            raise Managed(
                f"The manager decides here what is protected; {verb} would be undone.",
                hint="Use `holdfast vpgs`, or the API.",
            )
        answer = await self.agent.command(request)
        return answer | self.describe() if verb == "status" else answer

    def describe(self) -> Fields:
        """The manager's side, for `status`."""
        state, epoch = self.link.state, self.orders.highest
        return {
            "manager": {
                "connected": state.is_connected,
                "address": state.address,
                "connections": state.connections,
                "failure": state.failure.as_dict() if state.failure else None,
                "epoch": epoch[0],
                "number": epoch[1],
                "answers_waiting": len(self.orders.waiting),
            },
            "assignment": self._assignment.version if self._assignment else None,
            "certificate": {
                "expires_at": self.renewal.expires_at,
                "failure": self.renewal.failure.as_dict() if self.renewal.failure else None,
            },
            "key_refused": msgspec.to_builtins(self._desk.refusal),
            "failures": {what: error.as_dict() for what, error in self.applier.failures.items()},
        }


def _failed(message: Command | AssignmentPush, error: HoldfastError) -> Answer:
    return Answer(message.epoch, message.number, "failed", error=control.failure_of(error))


def _tell_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (defect := task.exception()) is not None:
        _log.error("a part of the agent failed", exc_info=defect)


def load_assignment(path: Path) -> Assignment | None:
    """What was assigned last, None for nothing; StateUnusable."""
    with usable(path):
        try:
            return msgspec.json.decode(path.read_bytes(), type=Assignment)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateUnusable(
                f"{path} cannot be used: {error}.",
                hint="Remove it: the manager sends it again.",
            ) from None
