"""The agent: one stream for each group, and what commands ask of them.

Groups come from a configuration file when it is made, or are added and removed while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from host_agent import __version__
from host_agent.analyser.watcher import Watcher
from host_agent.control import status
from host_agent.control.config import (
    ADDRESSES_MAX,
    ANALYSER,
    JOURNAL,
    REMOTE,
    AgentConfig,
    GroupConfig,
    IngestConfig,
)
from host_agent.control.errors import (
    BadRequest,
    CheckpointNotStored,
    NoDoor,
    NotProtected,
    UnknownGroup,
)
from host_agent.control.means import RealClock, RealRandom, ThreadOffload
from host_agent.control.mirrors import HostMirrors, add_to_status, sockets_of
from host_agent.control.state_dir import KeyStore, StateDir, load_group_key
from host_agent.control.tap_client import Fields
from host_agent.control.taps import TapDoor, TapHost
from host_agent.stream import link
from host_agent.stream.copies import RingShare
from host_agent.stream.drain import Drain
from host_agent.stream.parts import Buckets, Means, SpoolSettings, StreamSettings
from host_agent.stream.ports import Keys, Link
from host_agent.stream.stream import Doors, Stream
from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import Identity

_log = logging.getLogger("holdfast.agent")

#: Groups come and go: what one may use counts on so many, at least, where they do.
_STREAMS_MIN = 4
_FRAME_BYTES_MIN = 256 * limits.KIB
#: Copies of a frame that exist at once: one sealed waits, one leaves, one is being made.
_FRAME_COPIES = 3
_RESTART_SECONDS = 30.0
_FINISH_SECONDS = 5.0
_NO_DOOR_HINT = "The manager names them with the first assignment; see `holdfast-agent doctor`."


@dataclass
class Group:
    """A configured group: a stream for each durable copy, or a drain where there is none."""

    config: GroupConfig
    door: TapDoor
    copies: dict[str, Stream]
    drain: Drain | None
    watcher: Watcher | None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def stream(self) -> Stream | None:
        """The copy that says how well the group is protected; None if there is none."""
        return next(iter(self.copies.values()), None)

    def the_stream(self) -> Stream:
        """The same, for commands that need one; NotProtected."""
        if self.stream is None:
            raise NotProtected(
                f"Group {self.config.name} has neither a remote nor a local journal.",
                hint="Add remote or journal to its copies and restart the agent.",
            )
        return self.stream

    def nudge(self) -> None:
        """Something changed at the tap."""
        for stream in self.copies.values():
            stream.nudge()


OpenKeys = Callable[[GroupConfig, Identity, Path], Keys]
"""The data keys of a group's stream, kept in the group's folder."""


def keys_of_file(group: GroupConfig, identity: Identity, folder: Path) -> Keys:
    """Data keys that this host makes itself, under the group key of a file; BadKeyFile."""
    assert group.key_file is not None
    return KeyStore(folder, load_group_key(group.key_file, identity.tenant, group.name), identity)


class Agent:
    """All streams of this host. Make it, `start` it, answer commands, `stop` it."""

    def __init__(
        self, config: AgentConfig, state: StateDir, open_keys: OpenKeys = keys_of_file
    ) -> None:
        self.config = config
        self.tap = TapHost(config.tap)
        self.started_at = time.time()
        self._state = state
        self._open_keys = open_keys
        self.mirrors = HostMirrors(self.tap, state)
        self._offload = ThreadOffload()
        self.means = Means(RealClock(), RealRandom(), self._offload)
        self._narrator: asyncio.Task[None] | None = None
        #: The condition of a group is another than a second ago.
        self.on_change: Callable[[], None] = lambda: None
        self.groups = {group.name: self._make(group) for group in config.groups}

    def _make(self, group: GroupConfig) -> Group:
        identity = Identity(self.config.tenant, group.name, self.config.host)
        keys = self._open_keys(group, identity, self._state.group(group.name))
        door = TapDoor(self.tap, group.name)
        watcher = Watcher() if ANALYSER in group.copies else None
        sinks = {REMOTE: self.config.ingest, JOURNAL: self.config.journal}
        wanted = [name for name, sink in sinks.items() if name in group.copies and sink]
        if not wanted:
            return Group(group, door, {}, Drain(door, self.means, watcher), watcher)
        ring = RingShare(door, wanted) if len(wanted) > 1 else None
        copies: dict[str, Stream] = {}
        for name in wanted:
            connect = ring.door(name) if ring else door
            doors = Doors(connect, partial(self._dial, name), self._addresses(name), keys)
            # One copy shows the analyser what passes; the other sends the same.
            copies[name] = self._stream(group, identity, doors, None if copies else watcher)
        return Group(group, door, copies, None, watcher)

    def _addresses(self, copy: str) -> int:
        """How many addresses a stream goes round. Where the list may change, the most it may have:
        a shorter one is gone round more than once."""
        sink = self._sink(copy)
        return len(sink.addresses) if self.config.groups else ADDRESSES_MAX

    def _sink(self, copy: str) -> IngestConfig:
        sink = self.config.journal if copy == JOURNAL else self.config.ingest
        assert sink is not None
        return sink

    def _stream(
        self, group: GroupConfig, identity: Identity, doors: Doors, watcher: Watcher | None
    ) -> Stream:
        streams = sum(len(found.copies - {ANALYSER}) for found in self.config.groups)
        streams = streams or max(_STREAMS_MIN, len(self.groups) + 1)
        share = self.config.frame_memory_bytes // (_FRAME_COPIES * streams)
        settings = StreamSettings(
            identity=identity,
            software=f"holdfast-agent {__version__}",
            commit_seconds=group.commit_seconds,
            frame_bytes_max=max(_FRAME_BYTES_MIN, min(limits.FRAME_PLAIN_BYTES_MAX, share)),
            spool=self._spool(group),
        )
        now = self.means.clock.monotonic()
        buckets = Buckets(group.replication_rate, group.sync_rate, now)
        stream = Stream(settings, doors, self.means, buckets, watcher)
        stream.is_paused = self._state.is_paused(group.name)
        return stream

    def _spool(self, group: GroupConfig) -> SpoolSettings | None:
        """A group with several journals has none: the ring waits for the slowest of them."""
        spool = self.config.spool
        if spool is None or len(group.copies - {ANALYSER}) != 1:
            return None
        return SpoolSettings(spool.path, spool.bytes)

    async def _dial(self, copy: str, address: int) -> Link:
        sink = self._sink(copy)
        if not sink.addresses:
            raise NoDoor("No data node is known yet.", hint=_NO_DOOR_HINT, retryable=True)
        credentials = link.Credentials(sink.ca_file, sink.certificate_file, sink.key_file)
        place = sink.addresses[address % len(sink.addresses)]
        return await link.connect(place, credentials, sink.server_name)

    def start(self) -> None:
        """Start all streams."""
        for group in self.groups.values():
            self._start(group)
        self._narrator = asyncio.create_task(self._narrate(), name="narrate")

    def _start(self, group: Group) -> None:
        name = group.config.name
        for copy, stream in group.copies.items():
            running = self._keep_running(f"{name} ({copy})", stream)
            group.tasks.append(asyncio.create_task(running, name=f"{name}/{copy}"))
        if group.drain is not None:
            group.tasks.append(asyncio.create_task(group.drain.run(), name=f"{name}/drain"))
        self.mirrors.start(group)

    async def stop(self) -> None:
        """Say goodbye to ingest and end. What is not stored stays in the rings."""
        await self.mirrors.stop()
        await asyncio.gather(*(_end(group) for group in self.groups.values()))
        if self._narrator is not None:
            self._narrator.cancel()
            await asyncio.gather(self._narrator, return_exceptions=True)
        self._offload.close()

    # --- groups that come and go

    def add(self, config: GroupConfig) -> Group:
        """Run one more group; StateUnusable, BadKeyFile. The others notice nothing."""
        assert config.name not in self.groups
        group = self.groups[config.name] = self._make(config)
        self._start(group)
        return group

    async def remove(self, name: str) -> None:
        """Run a group no more. Its disks stay attached, what it keeps on disk stays."""
        group = self.groups.pop(name)
        await self.mirrors.leave(name)
        await _end(group)

    def set_rates(self, name: str, replication: float | None, sync: float | None) -> None:
        """New limits of a group, bytes a second; None without one. In effect at once."""
        group = self.groups[name]
        group.config = replace(group.config, replication_rate=replication, sync_rate=sync)
        for stream in group.copies.values():
            stream.set_limits(replication, sync)

    def set_paused(self, name: str, is_paused: bool) -> None:
        """Stop or go on sending, also after a restart; StateUnusable."""
        self._state.set_paused(name, is_paused)
        for stream in self.groups[name].copies.values():
            if is_paused:
                stream.pause()
            elif stream.is_paused:
                stream.resume()

    def set_ingest(self, ingest: IngestConfig) -> None:
        """Where streams go from now on. One that is connected elsewhere connects anew."""
        self.config = replace(self.config, ingest=ingest)
        shown = {f"{host}:{port}" for host, port in ingest.addresses}
        for group in self.groups.values():
            stream = group.copies.get(REMOTE)
            if stream is not None and stream.address not in shown:
                stream.reconnect("the doors changed")

    async def _keep_running(self, name: str, stream: Stream) -> None:
        """A defect in one group's stream must not end the others."""
        while True:
            task = asyncio.create_task(stream.run())
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            stream.phase = "failed"
            defect = None if task.cancelled() else task.exception()
            _log.error("the stream of group %s failed and starts again", name, exc_info=defect)
            await asyncio.sleep(_RESTART_SECONDS)

    async def _narrate(self) -> None:
        """Tell the log when something changes that a person would want to know."""
        told: dict[str, tuple[object, ...]] = {}
        conditions: dict[str, tuple[str | None, ...]] = {}
        while True:
            for name, group in self.groups.items():
                if group.stream is None:
                    continue
                condition = status.condition(group.stream)
                if conditions.get(name) != condition:
                    conditions[name] = condition
                    self.on_change()
                now = status.headline(group.stream)
                if told.get(name) != now:
                    told[name] = now
                    _log.info("group %s: %s", name, ", ".join(str(word) for word in now if word))
            await asyncio.sleep(1.0)

    # --- commands

    async def command(self, request: Fields) -> Fields:
        """Do one command; HoldfastError."""
        verbs: dict[str, Callable[[Fields], Awaitable[Fields]]] = {
            "status": self._status,
            "attach": self._attach,
            "detach": self._detach,
            "checkpoint": self._checkpoint,
            "discover": self._discover,
            "pause": partial(self._set_paused, True),
            "resume": partial(self._set_paused, False),
            "resync": self._resync,
            "sync": self._sync,
            "limit": self._limit,
        }
        verb = verbs.get(str(request.get("do")))
        if verb is None:
            raise BadRequest(
                f"The agent does not know the command {request.get('do')!r:.40}.",
                hint="Use the command holdfast-agent of the same version as the agent.",
            )
        return await verb(request)

    def _group(self, request: Fields) -> Group:
        name = str(request.get("group"))
        if name not in self.groups:
            known = ", ".join(self.groups)
            raise UnknownGroup(
                f"The configuration has no group {name!r:.80}.",
                hint=f"It has: {known}. Add [groups.{name:.63}] and restart the agent.",
            )
        return self.groups[name]

    async def _status(self, _request: Fields) -> Fields:
        tap: Fields
        try:
            tap = {**await self.tap.status(), "hello": self.tap.hello}
        except HoldfastError as error:
            tap = error.as_dict()
        groups = [await status.describe(group, tap, self.means) for group in self.groups.values()]
        for described in groups:
            add_to_status(described, self.mirrors.describe(described["group"]))
        return {
            "version": __version__,
            "pid": os.getpid(),
            "tenant": self.config.tenant,
            "host": self.config.host,
            "uptime_seconds": round(time.time() - self.started_at, 1),
            "memory_bytes": status.resident_bytes(),
            "tap": status.describe_tap(tap),
            "groups": groups,
        }

    async def _attach(self, request: Fields) -> Fields:
        group = self._group(request)
        disk, path = str(request.get("disk")), str(request.get("path"))
        if "qmp" in request:
            qmp, node = Path(str(request["qmp"])), str(request.get("node"))
            return await self.mirrors.attach(group, disk, qmp, node)
        cache = str(request.get("cache", "auto"))
        answer = await self.tap.attach(group.config, disk, path, cache)
        group.nudge()
        return {"group": group.config.name, "disk": disk, **_without_frame(answer)}

    async def _detach(self, request: Fields) -> Fields:
        group = self._group(request)
        group.door.forget()
        disk, force = str(request.get("disk")), bool(request.get("force", False))
        if self.mirrors.has(group.config.name, disk):
            await self.mirrors.detach(group.config.name, disk, force=force)
        else:
            await self.tap.detach(group.config.name, disk, force=force)
        group.nudge()
        return {"group": group.config.name, "disk": disk}

    async def _discover(self, request: Fields) -> Fields:
        sockets, uris = sockets_of(request)
        tap: Fields = {}
        with contextlib.suppress(HoldfastError):
            tap = await self.tap.status()
        return await self.mirrors.discover(sockets, uris, tap)

    async def _checkpoint(self, request: Fields) -> Fields:
        group = self._group(request)
        body = _marker(request)
        generation, seq, at = await group.the_stream().mark(body)
        result: Fields = {
            "group": group.config.name,
            **body,
            "generation": generation.hex(),
            "seq": seq,
            "time": at,
            "stored": False,
        }
        if request.get("wait"):
            seconds = _number(request, "timeout", 0.01, 86_400.0) or 60.0
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.gather(
                        *(one.wait_stored(generation, seq) for one in group.copies.values())
                    )
            except TimeoutError:
                raise _not_stored(group, seq, seconds) from None
            result["stored"] = True
        return result

    async def _set_paused(self, is_paused: bool, request: Fields) -> Fields:
        group = self._group(request)
        group.the_stream()
        self.set_paused(group.config.name, is_paused)
        for stream in group.copies.values():
            if not is_paused:
                # Also what stopped by itself goes on when a person says so.
                stream.resume()
        return {"group": group.config.name, "paused": is_paused}

    async def _resync(self, request: Fields) -> Fields:
        group = self._group(request)
        group.the_stream().resync()
        return {"group": group.config.name}

    async def _sync(self, request: Fields) -> Fields:
        """Read a disk, or all, again: compared with the journal unless `full`."""
        group = self._group(request)
        disk = request.get("disk")
        step = await group.the_stream().force_sync(
            None if disk is None else str(disk), is_full=bool(request.get("full", False))
        )
        return {"group": group.config.name, "disk": disk, "to_read_bytes": step.remaining}

    async def _limit(self, request: Fields) -> Fields:
        """New limits until the agent starts again; what is not named stays as it is."""
        group = self._group(request)
        buckets = group.the_stream().buckets
        rates = {
            "replication": buckets.replication.rate,
            "sync": buckets.sync.rate,
            "scan": buckets.scan.rate,
        }
        for name in rates:
            if name in request:
                mbit = _number(request, name, 0.1, 1_000_000.0)
                rates[name] = None if mbit is None else mbit * 1e6 / 8
        for stream in group.copies.values():
            stream.set_limits(rates["replication"], rates["sync"])
            stream.buckets.scan.set_rate(rates["scan"], self.means.clock.monotonic())
        return {"group": group.config.name, **{f"{k}_bytes_per_second": rates[k] for k in rates}}


async def _end(group: Group) -> None:
    await asyncio.gather(*(stream.end(_FINISH_SECONDS) for stream in group.copies.values()))
    for task in group.tasks:
        task.cancel()
    await asyncio.gather(*group.tasks, return_exceptions=True)


def _number(request: Fields, name: str, low: float, high: float) -> float | None:
    value = request.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}.")
    return float(value)


def _marker(request: Fields) -> dict[str, object]:
    tag = request.get("tag")
    kind = request.get("kind") or ("tagged" if tag else "crash")
    if kind not in ("crash", "application", "tagged"):
        raise BadRequest(
            f"A checkpoint cannot be of kind {kind!r:.40}.",
            hint="Use crash, application or tagged.",
        )
    if tag is not None and (not isinstance(tag, str) or not 0 < len(tag) <= 256):
        raise BadRequest("A tag has 1 to 256 characters.", hint="Shorten it.")
    if isinstance(tag, str) and not tag.isprintable():
        raise BadRequest("A tag has printable characters only.", hint="Remove the others.")
    return {"checkpoint": secrets.token_hex(16), "kind": kind, "tag": tag, "scope": "stream"}


def _not_stored(group: Group, seq: int, seconds: float) -> CheckpointNotStored:
    stream = group.the_stream()
    reason = f"the stream is {stream.phase}"
    if stream.failure is not None:
        reason += f": {stream.failure.message}"
    return CheckpointNotStored(
        f"The marker is in the stream at {seq}, but was not stored in {seconds:g} s ({reason}).",
        hint="It becomes a checkpoint as soon as the stream catches up; see holdfast-agent status.",
        retryable=True,
    )


def _without_frame(answer: Fields) -> Fields:
    return {key: value for key, value in answer.items() if key not in ("id", "ok")}
