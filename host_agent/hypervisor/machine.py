"""What a machine's QEMU tells, and what is asked of it for a mirror."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from host_agent.hypervisor.errors import NoSuchNode, QmpRefused
from host_agent.hypervisor.mirror import Job, Names, Pace, QemuView
from host_agent.hypervisor.qmp import Monitor

Fields = dict[str, Any]

#: QEMU's map of what is missing: what a small write costs when it has to be brought again.
_GRAIN_BYTES = 4096
#: What QEMU answers where no uuid was given.
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class MachineId:
    """Who a machine says that it is; None where it does not say."""

    uuid: str | None
    name: str | None


@dataclass(frozen=True)
class Node:
    """A node of a machine's block graph. `size` in bytes; `file` as QEMU names it."""

    name: str
    driver: str
    size: int
    file: str
    is_read_only: bool


async def ask(monitor: Monitor, command: str) -> Any:
    """An answer, or None where this QEMU does not know the command (a storage daemon)."""
    try:
        return await monitor.execute(command)
    except QmpRefused:
        return None


async def identify(monitor: Monitor) -> MachineId:
    """Name and uuid of the machine; QmpGone."""
    uuid = ((await ask(monitor, "query-uuid")) or {}).get("UUID")
    name = ((await ask(monitor, "query-name")) or {}).get("name")
    return MachineId(None if uuid == _NO_UUID else uuid, name)


async def nodes(monitor: Monitor) -> list[Node]:
    """All named nodes; QmpGone."""
    told = await monitor.execute("query-named-block-nodes", flat=True)
    return [_node(one) for one in told]


def _node(told: Fields) -> Node:
    image = told.get("image") or {}
    return Node(
        name=str(told.get("node-name", "")),
        driver=str(told.get("drv", "")),
        size=int(image.get("virtual-size", 0)),
        file=str(told.get("file", "")),
        is_read_only=bool(told.get("ro")),
    )


async def find_node(monitor: Monitor, name: str) -> Node:
    """The node of that name; NoSuchNode, QmpGone."""
    known = await nodes(monitor)
    for node in known:
        if node.name == name:
            return node
    names = ", ".join(node.name for node in known if not node.name.startswith("#"))
    raise NoSuchNode(
        f"The machine at {monitor.path} has no node {name!r:.80}.",
        hint=f"It has: {names or 'none with a name of its own'}. "
        "holdfast-agent discover shows which disk is which.",
    )


async def look(monitor: Monitor, names: Names, node: str) -> QemuView:
    """What the machine has of ours, for its disk `node`; QmpGone."""
    jobs = await monitor.execute("query-block-jobs")
    told = await monitor.execute("query-named-block-nodes", flat=True)
    by_name = {one.get("node-name"): one for one in told}
    job = next((one for one in jobs if one.get("device") == names.job), None)
    has_target = names.target in by_name
    if job is None:
        return QemuView(None, has_target)
    places = [by_name[name] for name in (names.filter, node) if name in by_name]
    return QemuView(Job.of(job, _dirty(places)), has_target)


def _dirty(told: list[Fields]) -> int | None:
    """Bytes in the job's own map of what is missing; None where QEMU does not show it.

    It has no name, and lies on the job's node or on the disk's, by the version of QEMU.
    """
    maps = [found for one in told for found in one.get("dirty-bitmaps") or []]
    counts = [int(found.get("count", 0)) for found in maps if not found.get("name")]
    return sum(counts) if counts else None


async def start(monitor: Monitor, names: Names, node: str, export: Fields, pace: Pace) -> None:
    """Add the target node and start the job; QmpRefused, QmpGone.

    No reconnect delay: a request waits for nothing, and what fails is kept in QEMU's map.
    """
    await monitor.execute(
        "blockdev-add",
        **{
            "driver": "nbd",
            "node-name": names.target,
            "server": {"type": "unix", "path": export["socket"]},
            "export": export["name"],
            "discard": "unmap",
        },
    )
    await monitor.execute(
        "blockdev-mirror",
        **{
            "job-id": names.job,
            "device": node,
            "target": names.target,
            "sync": "full",
            "copy-mode": "write-blocking",
            "on-target-error": "stop",
            "on-source-error": "stop",
            "filter-node-name": names.filter,
            "granularity": _GRAIN_BYTES,
            "speed": pace.speed,
            "buf-size": pace.piece,
        },
    )


async def nudge(monitor: Monitor, names: Names) -> None:
    """Make QEMU use the target, so that it connects again. Any answer will do; QmpGone."""
    line = f'qemu-io {names.target} "read 0 512"'
    try:
        await monitor.execute("human-monitor-command", **{"command-line": line})
    except QmpRefused:
        return
