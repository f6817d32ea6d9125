"""What a manager may ask of a host, each command once and in order for each group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from host_agent.control.agent import Agent
from host_agent.control.applying import Applier
from host_agent.control.assignment import assigned_rates
from host_agent.control.errors import UnknownCommand, UnknownGroup
from host_agent.wire.control import (
    AssignedGroup,
    Body,
    Checkpoint,
    Discover,
    ForceSync,
    Limit,
    Pause,
    Resume,
)

Details = Mapping[str, Any]
B = TypeVar("B")
Verb = Callable[[Any], Awaitable[Details]]
"""Does what a command's body asks for and says what came of it, flat; HoldfastError."""
Tell = Callable[[float, str], None]
"""How far a long command is: a share from 0 to 1, and the step."""


class Commands:
    """The verbs of one tenant on this host. Others may be added."""

    def __init__(
        self, agent: Agent, applier: Applier, look_again: Callable[[], Awaitable[Details]]
    ) -> None:
        self._agent = agent
        self._applier = applier
        self._locks: dict[str, asyncio.Lock] = {}
        self._long: dict[type[Any], Callable[[Any, Tell], Awaitable[Details]]] = {}
        self._verbs: dict[type[Any], Verb] = {
            Checkpoint: self._checkpoint,
            Pause: self._pause,
            Resume: self._resume,
            ForceSync: self._force_sync,
            Limit: self._limit,
            Discover: lambda _body: look_again(),
        }

    def add(self, kind: type[B], verb: Callable[[B], Awaitable[Details]]) -> None:
        """One more kind of command."""
        self._verbs[kind] = verb

    def add_long(self, kind: type[B], verb: Callable[[B, Tell], Awaitable[Details]]) -> None:
        """One more kind, which tells how far it is."""
        self._long[kind] = verb

    async def do(self, body: Body, tell: Tell) -> Details:
        """Carry a command out; HoldfastError. Those of one group wait for each other."""
        long = self._long.get(type(body))
        if long is not None:
            return await long(body, tell)
        verb = self._verbs.get(type(body))
        if verb is None:
            raise UnknownCommand(
                f"This host does not do {type(body).__name__.lower()}.",
                hint="It is for another kind of host, or the agent is too old.",
            )
        group = getattr(body, "vpg", None)
        if group is None:
            return await verb(body)
        async with self._locks.setdefault(group, asyncio.Lock()):
            return await verb(body)

    def forget(self, groups: set[str]) -> None:
        """Only these groups are left."""
        for name in [name for name, lock in self._locks.items() if not lock.locked()]:
            if name not in groups:
                del self._locks[name]

    def _assigned(self, vpg: str) -> AssignedGroup:
        group = self._applier.assigned(vpg)
        if group is None or vpg not in self._agent.groups:
            raise UnknownGroup(
                f"This host has no group {vpg}.",
                hint="It was not assigned, or not applied yet: look at the host's facts.",
                retryable=group is not None,
            )
        return group

    async def _checkpoint(self, body: Checkpoint) -> Details:
        self._assigned(body.vpg)
        stream = self._agent.groups[body.vpg].the_stream()
        kind = "crash" if body.tag is None else "tagged"
        marker: dict[str, object] = {"checkpoint": body.id, "kind": kind, "tag": body.tag}
        marker["scope"] = "stream"
        generation, seq, at = await stream.mark(marker)
        return {"generation": generation.hex(), "seq": seq, "source_time_ns": at}

    async def _pause(self, body: Pause) -> Details:
        return self._set_paused(body.vpg, is_paused=True)

    async def _resume(self, body: Resume) -> Details:
        details = self._set_paused(body.vpg, is_paused=False)
        for stream in self._agent.groups[body.vpg].copies.values():
            # Also what stopped by itself goes on when somebody says so.
            stream.resume()
        return details

    def _set_paused(self, vpg: str, *, is_paused: bool) -> Details:
        group = self._assigned(vpg)
        override = self._applier.override(vpg)
        wanted = replace(override, is_paused=(is_paused, group.state))
        self._applier.set_override(group, wanted)
        return {"paused": is_paused}

    async def _force_sync(self, body: ForceSync) -> Details:
        self._assigned(body.vpg)
        words = {"do": "sync", "group": body.vpg, "disk": body.disk, "full": body.full}
        answer = await self._agent.command(words)
        return {"to_read_bytes": answer["to_read_bytes"]}

    async def _limit(self, body: Limit) -> Details:
        group = self._assigned(body.vpg)
        override = self._applier.override(body.vpg)
        given = (body.replication_mbit_per_s, body.sync_mbit_per_s)
        self._applier.set_override(group, replace(override, rates=(given, assigned_rates(group))))
        return {"replication_mbit_per_s": given[0], "sync_mbit_per_s": given[1]}
