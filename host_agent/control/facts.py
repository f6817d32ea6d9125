"""What a heartbeat says of groups, from what `status` knows. Nothing is better than the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from host_agent.control import status
from host_agent.control.agent import Agent, Group
from host_agent.control.mirrors import add_to_status
from host_agent.control.tap_client import Fields
from host_agent.control.taps import find_group
from host_agent.stream.triggers import Trigger, meaning_of
from host_agent.wire.control import DiskFacts, GroupFacts
from host_agent.wire.errors import HoldfastError
from host_agent.wire.record import State

_SYNCED = State.RECORDING.name.lower()
_UNSYNCED = (State.DIRTY.name.lower(), State.SYNCING.name.lower())


@dataclass(frozen=True)
class Seen:
    """The tap's counter of a group at one moment, to tell a rate from the next."""

    written: int
    at: float


class Reporter:
    """Remembers from one heartbeat to the next. For one loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._seen: dict[str, Seen] = {}
        self._sync: dict[str, str] = {}

    async def report(self, disks: dict[str, list[DiskFacts]]) -> tuple[bool, list[GroupFacts]]:
        """(whether the tap answers, the facts of all groups); `disks` are each group's."""
        tap: Fields = {}
        is_up = True
        try:
            tap = await self._agent.tap.status()
        except HoldfastError:
            is_up = False
        groups = list(self._agent.groups.values())
        self._forget(group.config.name for group in groups)
        facts = [await self._group(group, tap, disks) for group in groups]
        return is_up, facts

    def _forget(self, names: Iterable[str]) -> None:
        kept = set(names)
        for memory in (self._seen, self._sync):
            for name in [one for one in memory if one not in kept]:
                del memory[name]

    async def _group(
        self, group: Group, tap: Fields, disks: dict[str, list[DiskFacts]]
    ) -> GroupFacts:
        name, agent = group.config.name, self._agent
        described = await status.describe(group, tap, agent.means)
        add_to_status(described, agent.mirrors.describe(name))
        return GroupFacts(
            vpg=name,
            phase=described["phase"],
            sync=self._synced(name, described),
            generation=described["generation"],
            received_seq=described["received"] or described["stored"],
            stored_seq=described["stored"],
            stored_source_time_ns=described["safe_time"],
            backlog_bytes=described["lag"]["bytes"] or 0,
            write_bytes_per_second=self._rate(name, find_group(tap, name) or {}),
            gap_reason=described["cause"] or self._held_up(described),
            disks=disks.get(name, []),
        )

    def _synced(self, name: str, described: Fields) -> str:
        """While nobody can tell, what was so last."""
        found = sync_word(described["state"], described["cause"])
        if found is not None:
            self._sync[name] = found
        return self._sync.get(name, "none")

    @staticmethod
    def _held_up(described: Fields) -> str | None:
        return None if described["rpo_met"] else described["held_up_by"]

    def _rate(self, name: str, facts: Fields) -> int:
        """Bytes a second that guests wrote since the last heartbeat."""
        written = sum(_written(disk) for disk in facts.get("disks", []))
        now = self._agent.means.clock.monotonic()
        before = self._seen.get(name)
        self._seen[name] = Seen(written, now)
        if before is None or now <= before.at or written < before.written:
            return 0
        return int((written - before.written) / (now - before.at))


def _written(disk: dict[str, Any]) -> int:
    counters = disk.get("counters") or {}
    return int(counters.get("written_bytes", 0))


def sync_word(state: str, cause: str | None) -> str | None:
    """How a group's journal keeps up with its disks; None where that cannot be told now."""
    if state == _SYNCED:
        return "in_sync"
    if state not in _UNSYNCED:
        return None
    if cause == Trigger.FIRST_START:
        return "initial_sync"
    meaning = meaning_of(cause)
    return "delta_sync" if meaning is None or meaning.compares else "bitmap_sync"
