"""Makes the host be as its assignment says, group by group, and keeps it so.

It compares what should be with what is and does the difference, again and again: after a new
assignment, a restart, a tap that lost its state, a machine that comes up late. One group's trouble
is that group's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from host_agent.control.agent import Agent, Group
from host_agent.control.assignment import (
    Override,
    bytes_per_second,
    config_of,
    dump_override,
    parse_override,
)
from host_agent.control.errors import StateUnusable
from host_agent.control.reach import Reach
from host_agent.control.state_dir import StateDir, usable, write_durably
from host_agent.control.tap_client import Fields
from host_agent.control.taps import find_group
from host_agent.stream.errors import TapGone
from host_agent.wire.control import AssignedDisk, AssignedGroup, Assignment, DiskFacts, PathSource
from host_agent.wire.errors import HoldfastError
from host_agent.wire.tapctl import TapRefused

_log = logging.getLogger("holdfast.agent")

#: How often it looks while something is to be done yet, and while all is as it should be.
_AGAIN_SECONDS = 3.0
_LOOK_SECONDS = 30.0
#: Groups that are worked on at once.
_AT_ONCE = 8


@dataclass
class DiskView:
    """How a disk stands: where machines reach it, and what is wrong with it."""

    uri: str | None = None
    failure: HoldfastError | None = None

    def facts(self, disk: str) -> DiskFacts:
        """As a heartbeat says it."""
        state = "attached" if self.failure is None else self.failure.code
        return DiskFacts(disk, self.uri, state)


class Applier:
    """Run `run` as a task; everything else may be called from the same loop meanwhile."""

    def __init__(self, agent: Agent, state: StateDir, reach: Reach) -> None:
        self._agent, self._state, self._reach = agent, state, reach
        self._wanted: Assignment | None = None
        self._views: dict[str, dict[str, DiskView]] = {}
        self._failures: dict[str, HoldfastError] = {}
        self._overrides: dict[str, Override] = {}
        self._change = asyncio.Event()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._locks: dict[str, asyncio.Lock] = {}

    def want(self, assignment: Assignment) -> None:
        """What should be from now on."""
        self._wanted = assignment
        self._change.set()

    def assigned(self, vpg: str) -> AssignedGroup | None:
        """A group as it was assigned, or None."""
        groups = self._wanted.groups if self._wanted else []
        return next((group for group in groups if group.vpg == vpg), None)

    def disks(self) -> dict[str, list[DiskFacts]]:
        """How the disks of all groups stand."""
        return {
            vpg: [view.facts(disk) for disk, view in views.items()]
            for vpg, views in self._views.items()
        }

    @property
    def failures(self) -> dict[str, HoldfastError]:
        """What keeps groups from being as they should be."""
        return dict(self._failures)

    # --- what commands change

    def override(self, vpg: str) -> Override:
        """What commands set for the group; StateUnusable."""
        if vpg not in self._overrides:
            self._overrides[vpg] = _load_override(self._override_path(vpg))
        return self._overrides[vpg]

    def set_override(self, group: AssignedGroup, override: Override) -> None:
        """Set it, durably, and in effect at once; StateUnusable."""
        write_durably(self._override_path(group.vpg), dump_override(override))
        self._overrides[group.vpg] = override
        if group.vpg in self._agent.groups:
            self._adjust(group)

    def _override_path(self, vpg: str) -> Path:
        return self._state.group(vpg) / "override.json"

    # --- doing

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            self._change.clear()
            is_done = await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS if is_done else _AGAIN_SECONDS):
                    await self._change.wait()

    async def _round(self) -> bool:
        """One comparison; whether all is as it should be."""
        wanted = self._wanted
        if wanted is None:
            return True
        tap: Fields | None = None
        with contextlib.suppress(HoldfastError):
            tap = await self._agent.tap.status()
        names = {group.vpg for group in wanted.groups}
        gone = [vpg for vpg in self._state.groups() if vpg not in names]
        work = [self._drop(vpg, tap) for vpg in gone]
        work += [self._bring(group, tap) for group in wanted.groups]
        return all(await asyncio.gather(*work)) and tap is not None

    async def _bring(self, group: AssignedGroup, tap: Fields | None) -> bool:
        async with self._gate, self._lock(group.vpg):
            try:
                running = await self._run(group)
                self._failures.pop(group.vpg, None)
            except HoldfastError as error:
                self._note(group.vpg, error)
                return False
            if tap is None:
                return False
            return await self._bring_disks(group, running, find_group(tap, group.vpg) or {})

    def _lock(self, vpg: str) -> asyncio.Lock:
        return self._locks.setdefault(vpg, asyncio.Lock())

    def _note(self, what: str, error: HoldfastError) -> None:
        known = self._failures.get(what)
        if known is None or known.message != error.message:
            _log.warning("%s is not as it should be: %s", what, error)
        self._failures[what] = error

    async def _run(self, group: AssignedGroup) -> Group:
        """The group as it runs, adjusted."""
        agent, config = self._agent, config_of(group, self.override(group.vpg))
        running = agent.groups.get(group.vpg)
        if running is not None and running.config.commit_seconds != config.commit_seconds:
            await agent.remove(group.vpg)
            running = None
        if running is None:
            self._state.set_paused(group.vpg, self.override(group.vpg).paused_of(group))
            return agent.add(config)
        running.config = config
        self._adjust(group)
        return running

    def _adjust(self, group: AssignedGroup) -> None:
        """Rates and the pause; what is so already is left alone."""
        agent, override = self._agent, self.override(group.vpg)
        replication, sync = (bytes_per_second(rate) for rate in override.rates_of(group))
        running = agent.groups[group.vpg]
        for stream in running.copies.values():
            if (stream.buckets.replication.rate, stream.buckets.sync.rate) != (replication, sync):
                agent.set_rates(group.vpg, replication, sync)
            if stream.is_paused != override.paused_of(group):
                agent.set_paused(group.vpg, override.paused_of(group))

    async def _bring_disks(self, group: AssignedGroup, running: Group, tap: Fields) -> bool:
        views = self._views.setdefault(group.vpg, {})
        wanted = {disk.disk: disk for disk in group.disks}
        served = {str(disk.get("disk")) for disk in tap.get("disks", [])}
        present = served | {str(name) for name in tap.get("absent", [])}
        for name in [*views, *present]:
            if name not in wanted:
                await self._detach(group.vpg, name, views, present)
        for disk in group.disks:
            if not self._is_there(running, disk, views, served):
                await self._attach(running, disk, views)
        return all(view.failure is None for view in views.values())

    def _is_there(
        self, running: Group, disk: AssignedDisk, views: dict[str, DiskView], served: set[str]
    ) -> bool:
        view = views.get(disk.disk)
        if view is None or view.failure is not None:
            return False
        if isinstance(disk.source, PathSource):
            return disk.disk in served
        return self._agent.mirrors.has(running.config.name, disk.disk)

    async def _attach(self, running: Group, disk: AssignedDisk, views: dict[str, DiskView]) -> None:
        view = views.setdefault(disk.disk, DiskView())
        request: Fields = {"do": "attach", "group": running.config.name, "disk": disk.disk}
        source = disk.source
        if isinstance(source, PathSource):
            request["path"] = source.path
        else:
            request |= {"qmp": source.socket, "node": source.node}
        try:
            self._reach.check(source)
            answer = await self._agent.command(request)
        except HoldfastError as error:
            self._note(f"disk {disk.disk}", error)
            view.failure = error
        else:
            self._failures.pop(f"disk {disk.disk}", None)
            view.failure, view.uri = None, answer.get("uri")

    async def _detach(
        self, vpg: str, disk: str, views: dict[str, DiskView], present: Iterable[str]
    ) -> None:
        """A disk that a machine uses stays with the tap until the machine lets go."""
        is_mirror = self._agent.mirrors.has(vpg, disk)
        if is_mirror or disk in present:
            try:
                words: Fields = {"do": "detach", "group": vpg, "disk": disk, "force": is_mirror}
                await self._agent.command(words)
            except HoldfastError as error:
                self._note(f"disk {disk}", error)
                views.setdefault(disk, DiskView()).failure = error
                return
        views.pop(disk, None)
        self._failures.pop(f"disk {disk}", None)

    # --- groups that are no longer assigned

    async def drop_all(self) -> bool:
        """End all groups that there are, in place of `run`; whether none is left."""
        tap: Fields | None = None
        with contextlib.suppress(HoldfastError):
            tap = await self._agent.tap.status()
        dropped = await asyncio.gather(*(self._drop(vpg, tap) for vpg in self._state.groups()))
        return all(dropped)

    async def _drop(self, vpg: str, tap: Fields | None) -> bool:
        """Detach all of it, give its ring back, forget its keys; whether that is done."""
        async with self._gate, self._lock(vpg):
            if tap is None:
                return False
            facts = find_group(tap, vpg)
            try:
                await self._let_go(vpg, facts)
            except (TapRefused, TapGone, StateUnusable) as error:
                self._note(vpg, error)
                return False
        self._locks.pop(vpg, None)
        return True

    async def _let_go(self, vpg: str, facts: Fields | None) -> None:
        agent = self._agent
        if vpg in agent.groups or self._has_mirrors(vpg):
            await self._end_group(vpg)
        served = facts or {"disks": [], "absent": []}
        for name in [*(one["disk"] for one in served["disks"]), *served.get("absent", [])]:
            await agent.tap.detach(vpg, str(name), force=False)
        if facts is not None:
            await agent.tap.close(vpg)
        self._views.pop(vpg, None)
        self._overrides.pop(vpg, None)
        self._failures.pop(vpg, None)
        self._state.forget(vpg)

    def _has_mirrors(self, vpg: str) -> bool:
        return (self._state.group(vpg) / "mirrors.json").exists()

    async def _end_group(self, vpg: str) -> None:
        """End its mirrors while there is somebody to do it, then its stream."""
        agent = self._agent
        if vpg not in agent.groups:
            # After a restart: what an earlier agent mirrored is taken up to be ended.
            placeholder = AssignedGroup(vpg, vpg, "paused", 5.0, None, None, 8, [])
            self._state.set_paused(vpg, is_paused=True)
            agent.add(config_of(placeholder, Override()))
        for told in agent.mirrors.describe(vpg):
            await agent.mirrors.detach(vpg, str(told["disk"]), force=True)
        await agent.remove(vpg)
        path = self._state.group(vpg) / "mirrors.json"
        with usable(path):
            path.unlink(missing_ok=True)


def _load_override(path: Path) -> Override:
    with usable(path):
        try:
            return parse_override(path.read_bytes())
        except FileNotFoundError:
            return Override()
        except ValueError as error:
            raise StateUnusable(f"{path} cannot be used: {error}.", hint="Remove it.") from None
