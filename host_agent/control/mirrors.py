"""Disks of running machines: attached over QMP, kept over restarts, found by `discover`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from host_agent.control.errors import BadRequest, DiskNameTaken, StateUnusable
from host_agent.control.state_dir import StateDir, write_durably
from host_agent.control.tap_client import ANSWER_SECONDS, Fields, TapChannel, connect
from host_agent.control.taps import TapHost
from host_agent.hypervisor import discovery, machine
from host_agent.hypervisor.errors import QmpGone
from host_agent.hypervisor.mirror import UNPROTECTED, TapView
from host_agent.hypervisor.mirroring import Means, Mirroring, Spec
from host_agent.hypervisor.qmp import Monitor, Monitors
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.tapctl import TapRefused

if TYPE_CHECKING:
    from host_agent.control.agent import Group

_log = logging.getLogger("holdfast.agent")

_BEGIN_SECONDS = 5.0
#: What a disk cannot have done to it while a job uses it.
REFUSED_MEANWHILE = (
    "resizing it (block_resize, virsh blockresize)",
    "snapshots of it (blockdev-snapshot, virsh snapshot-create)",
    "backup, commit and other jobs on it",
    "live migration of the machine with this disk",
)


class MirrorChannel:
    """The tap's verb `mirror` for one disk, over a connection of its own."""

    def __init__(self, channel: TapChannel, disk: str) -> None:
        self._channel = channel
        self._disk = disk

    async def act(self, act: str, **fields: int) -> TapView:
        """One act and what the tap knows then; TapRefused, TapGone, WireError."""
        answer = await self._channel.call(
            "mirror", disk=self._disk, act=act, seconds=ANSWER_SECONDS, **fields
        )
        try:
            return TapView.of(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"The tap's answer to mirror lacks something: {error}.") from None

    async def close(self) -> None:
        """End the connection, and with it what it confirmed."""
        await self._channel.close()


@dataclass
class _Running:
    mirroring: Mirroring
    task: asyncio.Task[None]


class HostMirrors:
    """All mirrors of this host."""

    def __init__(self, tap: TapHost, state: StateDir) -> None:
        self._tap = tap
        self._state = state
        self._monitors = Monitors()
        self._running: dict[tuple[str, str], _Running] = {}

    def start(self, group: Group) -> None:
        """Go on with the mirrors that an earlier agent began; StateUnusable."""
        for spec in self._load(group.config.name):
            self._run(group, spec)

    async def stop(self) -> None:
        """Let go of all mirrors. QEMU goes on with its jobs, the next agent finds them."""
        for running in self._running.values():
            await _cancel(running.task)
        self._running.clear()
        await self._monitors.close()

    async def leave(self, group: str) -> None:
        """Let go of one group's mirrors, as `stop` does of all."""
        for name, disk in [found for found in self._running if found[0] == group]:
            await _cancel(self._running.pop((name, disk)).task)

    def has(self, group: str, disk: str) -> bool:
        """Whether the disk is mirrored by QEMU."""
        return (group, disk) in self._running

    async def attach(self, group: Group, disk: str, qmp: Path, node: str) -> Fields:
        """Begin to mirror a node of a running machine; HoldfastError, and then nothing is left."""
        name = group.config.name
        monitor = self._monitors.of(qmp)
        found = await machine.find_node(monitor, node)
        who = await machine.identify(monitor)
        spec = Spec(disk, qmp, node, who)
        known = self._running.get((name, disk))
        if known is not None and known.mirroring.spec != spec:
            raise _taken(name, known.mirroring.spec)
        answer = await self._tap.attach_mirror(group.config, disk, found.size)
        if known is None:
            known = self._run(group, spec)
            self._save(name)
            group.nudge()
            try:
                await known.mirroring.wait_begun(_BEGIN_SECONDS)
            except HoldfastError:
                await self._take_back(name, disk)
                raise
        return {
            "group": name,
            "disk": disk,
            "size": found.size,
            "number": answer.get("number"),
            "mirror": known.mirroring.describe(),
            "refused_meanwhile": list(REFUSED_MEANWHILE),
        }

    async def _take_back(self, group: str, disk: str) -> None:
        running = self._running.pop((group, disk))
        await _cancel(running.task)
        self._save(group)
        with contextlib.suppress(HoldfastError):
            await running.mirroring.end()
        await self._tap.detach(group, disk, force=True)

    async def detach(self, group: str, disk: str, *, force: bool) -> None:
        """End the job, remove its target, forget the disk. The machine goes on; QmpGone."""
        running = self._running[(group, disk)]
        await _cancel(running.task)
        try:
            await running.mirroring.end()
        except HoldfastError:
            if not force:
                running.mirroring = running.mirroring.again()
                running.task = asyncio.create_task(running.mirroring.run())
                raise
        del self._running[(group, disk)]
        self._save(group)
        await self._tap.detach(group, disk, force=True)

    def describe(self, group: str) -> list[Fields]:
        """How the mirrors of a group are."""
        found = [one.mirroring for (name, _), one in self._running.items() if name == group]
        return [one.describe() for one in found]

    # --- doing

    def _run(self, group: Group, spec: Spec) -> _Running:
        monitor = self._monitors.of(spec.qmp)
        limit: Callable[[], float | None] = lambda: _copy_limit(group)  # noqa: E731
        means = Means(
            monitor=monitor,
            connect_tap=lambda: self._connect(group, spec, monitor),
            nbd_socket=str(self._tap.nbd_socket(group.config.name)),
            copy_limit=limit,
        )
        mirroring = Mirroring(spec, means)
        task = asyncio.create_task(mirroring.run(), name=f"{group.config.name}/{spec.disk} mirror")
        running = _Running(mirroring, task)
        self._running[(group.config.name, spec.disk)] = running
        return running

    async def _connect(self, group: Group, spec: Spec, monitor: Monitor) -> MirrorChannel:
        """Connect to the tap; one that lost its state is told of the disk again."""
        name = group.config.name
        try:
            return await self._open(name, spec.disk)
        except TapRefused as refusal:
            if refusal.code != "no_such_disk":
                raise
        except HoldfastError as error:
            if error.code != "tap_not_running":
                raise
        found = await machine.find_node(monitor, spec.node)
        await self._tap.attach_mirror(group.config, spec.disk, found.size)
        group.nudge()
        return await self._open(name, spec.disk)

    async def _open(self, group: str, disk: str) -> MirrorChannel:
        channel = await connect(self._tap.stream_socket(group))
        mirror = MirrorChannel(channel, disk)
        try:
            await mirror.act("look")
        except BaseException:
            await mirror.close()
            raise
        return mirror

    # --- what is kept

    def _path(self, group: str) -> Path:
        return self._state.group(group) / "mirrors.json"

    def _load(self, group: str) -> list[Spec]:
        path = self._path(group)
        try:
            return [Spec.of(one) for one in msgspec.json.decode(path.read_bytes())]
        except FileNotFoundError:
            return []
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StateUnusable(
                f"{path} cannot be used: {error}.",
                hint="Remove it, and attach the group's machines again.",
            ) from None

    def _save(self, group: str) -> None:
        specs = [one.mirroring.spec for (name, _), one in self._running.items() if name == group]
        write_durably(self._path(group), msgspec.json.encode([spec.as_dict() for spec in specs]))

    # --- discovery

    async def discover(self, sockets: list[Path], uris: list[str], tap: Fields) -> Fields:
        """The machines behind these sockets and libvirt connections, and behind ours."""
        paths = list(dict.fromkeys([*self._monitors.paths, *sockets]))
        found, failed = [], []
        for path in paths:
            try:
                found.append(await discovery.through_qmp(self._monitors.of(path)))
            except QmpGone as error:
                failed.append({"source": str(path), **error.as_dict()})
        for uri in uris:
            try:
                found += await discovery.through_libvirt(uri)
            except HoldfastError as error:
                failed.append({"source": uri, **error.as_dict()})
        for one in found:
            for disk in one["disks"]:
                disk["protected"] = self._protected(one["source"], disk, tap)
        return {"machines": found, "failed": failed}

    def _protected(self, source: str, disk: Fields, tap: Fields) -> Fields | None:
        """How this disk is protected: group, name, mode and health; None if it is not."""
        for (group, name), one in self._running.items():
            spec = one.mirroring.spec
            if str(spec.qmp) == source and spec.node == disk["node"]:
                health = one.mirroring.health
                return {"group": group, "disk": name, "mode": "mirror", "health": health}
        for found in tap.get("groups", []):
            for served in found.get("disks", []):
                if _is_served(found, served, disk):
                    group, name = found.get("group"), served.get("disk")
                    health = found.get("state")
                    return {"group": group, "disk": name, "mode": "disk", "health": health}
        return None


def _is_served(group: Fields, served: Fields, disk: Fields) -> bool:
    """Whether a machine's disk is an export of the tap, or the very file behind one."""
    path = disk.get("path")
    if not path or served.get("mirror") is not None:
        return False
    socket = str(group.get("nbd_socket"))
    is_export = path.startswith("nbd+unix:") and socket in path and served["disk"] in path
    return is_export or path == served.get("path")


def add_to_status(described: Fields, mirrors: list[Fields]) -> None:
    """A group with a mirror that is not confirmed is unprotected, whatever its stream does."""
    described["mirrors"] = mirrors
    bad = next((one for one in mirrors if one["health"] == UNPROTECTED), None)
    if bad is not None:
        described["phase"] = UNPROTECTED
        described["held_up_by"] = "mirror"
        described["held_up_why"] = f"disk {bad['disk']}: {bad['why']}"


def _copy_limit(group: Group) -> float | None:
    return group.stream.buckets.sync.rate if group.stream else None


def sockets_of(request: Fields) -> tuple[list[Path], list[str]]:
    """The sockets and URIs of a `discover`; BadRequest."""
    sockets, uris = request.get("qmp", []), request.get("libvirt", [])
    for words in (sockets, uris):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise BadRequest("qmp and libvirt are lists of texts.")
    return [Path(one) for one in sockets], uris


def _taken(group: str, spec: Spec) -> DiskNameTaken:
    return DiskNameTaken(
        f"Disk {spec.disk} of group {group} is node {spec.node} of the machine at {spec.qmp}.",
        hint="Use another name, or detach that disk first.",
    )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
