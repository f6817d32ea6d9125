"""The machines and disks of this host, as a manager hears of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial

import msgspec

from host_agent.control.agent import Agent
from host_agent.control.reach import Reach
from host_agent.control.tap_client import Fields
from host_agent.wire import control
from host_agent.wire.control import FoundDisk, FoundMachine, Inventory, PathSource, QmpSource
from host_agent.wire.errors import LimitExceeded
from host_agent.wire.limits import DISK_BYTES_MAX, HOST_MACHINES_MAX, STREAM_DISKS_MAX


async def look(agent: Agent, reach: Reach) -> Inventory:
    """Everything that could be protected now. What does not answer is left out."""
    found = _in_folders(await agent.means.offload(reach.disks))
    sockets = await agent.means.offload(reach.sockets)
    told = await agent.mirrors.discover(sockets, [], {})
    machines = [*found, *filter(None, map(_machine, told["machines"]))]
    return inventory_of(machines)


def inventory_of(machines: Iterable[FoundMachine]) -> Inventory:
    """The inventory, ordered, cut to what one message may hold, and its digest."""
    ordered = sorted(machines, key=lambda one: (one.name, one.uuid or ""))[:HOST_MACHINES_MAX]
    while True:
        digest = hashlib.sha256(msgspec.json.encode(ordered)).hexdigest()
        made = Inventory(digest, ordered)
        try:
            control.encode(made)
        except LimitExceeded:
            ordered = ordered[: len(ordered) * 3 // 4]
        else:
            return made


def _in_folders(disks: Iterable[tuple[str, object, int]]) -> list[FoundMachine]:
    by_machine: dict[str, list[FoundDisk]] = {}
    for machine, path, size in disks:
        if control.plain(str(path), 1024) != str(path):
            continue
        name = control.plain(str(path).rpartition("/")[2], 255)
        disk = FoundDisk(name, PathSource(str(path)), min(size, DISK_BYTES_MAX))
        by_machine.setdefault(control.plain(machine, 255), []).append(disk)
    return [
        FoundMachine(name, found[:STREAM_DISKS_MAX], None) for name, found in by_machine.items()
    ]


def _machine(told: Fields) -> FoundMachine | None:
    disks = list(filter(None, map(partial(_disk, told["source"]), told["disks"])))
    if not disks:
        return None
    name = told["name"] or told["uuid"] or told["source"].rpartition("/")[2]
    return FoundMachine(control.plain(str(name), 255), disks[:STREAM_DISKS_MAX], told["uuid"])


def _disk(socket: str, told: Fields) -> FoundDisk | None:
    """What can be written and has a size can be mirrored."""
    node, size = told["node"], told["size"]
    if not node or told["read_only"] or not size:
        return None
    name = control.plain(str(told["target"] or node), 255)
    return FoundDisk(name, QmpSource(socket, str(node)), min(int(size), DISK_BYTES_MAX))
