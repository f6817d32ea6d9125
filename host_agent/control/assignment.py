"""What a manager has a host protect: checked, kept, and what commands changed on top of it. Pure.

Kept on the host's disk, an assignment is enough to work without the control plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import msgspec

from host_agent.control.config import MEGABIT_BYTES, REMOTE, GroupConfig
from host_agent.control.errors import BadAssignment
from host_agent.wire.control import AssignedGroup, Assignment, PathSource
from host_agent.wire.errors import BadName
from host_agent.wire.limits import MIB
from host_agent.wire.names import check_name

PAUSED = "paused"
_HOLD_MS_MAX = 200
#: What the tap makes at least.
_RING_MIB_MIN = 8
_HINT = "What was assigned before stays in force. Update the older of agent and manager."

Rates = tuple[float | None, float | None]


def check_assignment(found: Assignment, tenant: str, host: str) -> None:
    """BadAssignment unless it is for this tenant and host and every word of it can be obeyed."""
    if (found.tenant, found.host) != (tenant, host):
        raise BadAssignment(
            f"The assignment is for {found.tenant}/{found.host}, this is {tenant}/{host}.",
            hint="Nothing was changed. Tell the provider: a manager mixed up two hosts.",
        )
    try:
        addresses_of(found)
        _check_names([check_name("group", group.vpg) for group in found.groups])
        for group in found.groups:
            _check_disks(group)
    except (BadName, ValueError) as error:
        raise BadAssignment(f"The assignment cannot be used: {error}.", hint=_HINT) from None


def addresses_of(assignment: Assignment) -> tuple[tuple[str, int], ...]:
    """The data doors, in the order in which they are tried; ValueError."""
    return tuple(address_of(door) for door in assignment.doors)


def address_of(door: str) -> tuple[str, int]:
    """The parts of HOST:PORT; ValueError."""
    host, colon, port = door.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"{door!r:.80} is not HOST:PORT")
    return host, int(port)


def _check_disks(group: AssignedGroup) -> None:
    _check_names([check_name("disk", disk.disk) for disk in group.disks])
    for disk in group.disks:
        source = disk.source
        place = source.path if isinstance(source, PathSource) else source.socket
        if not PurePosixPath(place).is_absolute():
            raise ValueError(f"{place!r:.200} is no absolute path")


def _check_names(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands in it twice")


# --- what a command changed on top of an assignment


@dataclass(frozen=True)
class Override:
    """What commands set for a group since the assignment that they were given under.

    It holds over restarts, until an assignment says something else than that one said. Each is
    (what is set, what the assignment said then), or None.
    """

    rates: tuple[Rates, Rates] | None = None
    is_paused: tuple[bool, str] | None = None

    def rates_of(self, group: AssignedGroup) -> Rates:
        """Replication and sync of the group, megabit a second."""
        assigned = assigned_rates(group)
        if self.rates is not None and self.rates[1] == assigned:
            return self.rates[0]
        return assigned

    def paused_of(self, group: AssignedGroup) -> bool:
        """Whether the group is not to send."""
        if self.is_paused is not None and self.is_paused[1] == group.state:
            return self.is_paused[0]
        return group.state == PAUSED


def assigned_rates(group: AssignedGroup) -> Rates:
    """Replication and sync as they were assigned, megabit a second."""
    return group.replication_mbit_per_s, group.sync_mbit_per_s


def parse_override(data: bytes) -> Override:
    """As `dump_override` wrote it; ValueError."""
    return msgspec.json.decode(data, type=Override)


def dump_override(override: Override) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(override)


def config_of(group: AssignedGroup, override: Override) -> GroupConfig:
    """How the agent runs the group."""
    replication, sync = override.rates_of(group)
    return GroupConfig(
        name=group.vpg,
        rpo_seconds=group.rpo_seconds,
        replication_rate=bytes_per_second(replication),
        sync_rate=bytes_per_second(sync),
        ring_bytes=max(_RING_MIB_MIN, group.ring_mib) * MIB,
        hold_ms_max=_HOLD_MS_MAX,
        copies=frozenset({REMOTE}),
    )


def bytes_per_second(mbit: float | None) -> float | None:
    """A rate as streams count it."""
    return None if mbit is None else mbit * MEGABIT_BYTES
