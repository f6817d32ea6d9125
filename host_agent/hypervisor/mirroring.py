"""Keeps one disk of a running machine mirrored into the tap: looks, decides, does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from host_agent.hypervisor import machine
from host_agent.hypervisor.errors import OtherMachine, QmpGone, QmpRefused
from host_agent.hypervisor.machine import MachineId
from host_agent.hypervisor.mirror import (
    MIRRORED,
    SYNCING,
    UNPROTECTED,
    Act,
    Fields,
    Job,
    Mirror,
    Names,
    QemuView,
    Step,
    TapView,
    concerns,
    ended_why,
    first_pace,
    pace,
)
from host_agent.hypervisor.qmp import Monitor
from host_agent.wire.errors import HoldfastError

_log = logging.getLogger("holdfast.agent")

#: How often it looks while all is well, and while something is to be done.
_LOOK_SECONDS = 0.5
_BUSY_SECONDS = 0.2
#: A confirmation holds for several looks, should one be late.
CONFIRM_MS = 3000
_END_SECONDS = 10.0


class TapMirror(Protocol):
    """The tap's side of one mirrored disk. Confirmations end with the connection that gave them."""

    async def act(self, act: str, **fields: int) -> TapView: ...
    async def close(self) -> None: ...


@dataclass(frozen=True)
class Spec:
    """What is mirrored, from where: kept over restarts of the agent."""

    disk: str
    qmp: Path
    node: str
    machine: MachineId

    def as_dict(self) -> Fields:
        """As JSON."""
        who = {"uuid": self.machine.uuid, "name": self.machine.name}
        return {"disk": self.disk, "qmp": str(self.qmp), "node": self.node, **who}

    @classmethod
    def of(cls, fields: Fields) -> Spec:
        """From JSON; KeyError."""
        who = MachineId(fields.get("uuid"), fields.get("name"))
        return cls(fields["disk"], Path(fields["qmp"]), fields["node"], who)


@dataclass(frozen=True)
class Means:
    """What a mirror works with. `connect_tap` first makes sure that the tap serves the disk.

    `copy_limit`: bytes a second that a copy may have, None without a limit.
    """

    monitor: Monitor
    connect_tap: Callable[[], Awaitable[TapMirror]]
    nbd_socket: str
    copy_limit: Callable[[], float | None]


class Mirroring:
    """One mirror. `run` it as a task; `describe` and `end` may be called meanwhile."""

    def __init__(self, spec: Spec, means: Means) -> None:
        self.spec = spec
        self.names = Names.of(means.nbd_socket, spec.disk)
        self._means = means
        self._mirror = Mirror()
        self._tap: TapMirror | None = None
        self._wake = asyncio.Event()
        self._is_known = False
        self._step = Step(Act.WAIT, UNPROTECTED, "the agent has not looked yet")
        self._since = time.time()
        self._job: Job | None = None
        self._refused = 0
        self._cancelled_because: str | None = None
        self._losses = 0
        self._lost: Fields | None = None
        self.failure: HoldfastError | None = None
        self._stop_listening = means.monitor.listen(self._on_event)

    @property
    def health(self) -> str:
        """mirrored, syncing or unprotected."""
        return self._step.health

    def describe(self) -> Fields:
        """How it is, for `status`. Bytes, and seconds since 1970 UTC."""
        job = self._job
        return {
            **self.spec.as_dict(),
            "health": self.health,
            "why": self._step.why,
            "since": round(self._since, 3),
            "job": None if job is None else {
                "id": self.names.job,
                "status": job.status,
                "total_bytes": job.length,
                "done_bytes": job.done,
                "missing_bytes": job.dirty,
                "bytes_per_second_max": job.speed,
            },
            "refused_writes": self._refused,
            "losses": self._losses,
            "last_loss": self._lost,
            "failure": self.failure.as_dict() if self.failure else None,
        }  # fmt: skip

    def _on_event(self, event: Fields | None) -> None:
        if event is None:
            self._is_known = False
            self._wake.set()
            return
        if (why := ended_why(event, self.names.job)) is not None:
            self._mirror.ended = self._cancelled_because or why
            self._cancelled_because = None
        if concerns(event, self.names.job):
            self._wake.set()

    # --- its life

    async def run(self) -> None:
        """Never returns; cancel it. What it has at QEMU and at the tap stays."""
        try:
            while True:
                self._wake.clear()
                await self._turn()
                seconds = _LOOK_SECONDS if self.health == MIRRORED else _BUSY_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._wake.wait()
        finally:
            self._stop_listening()
            await self._leave_tap()

    async def _turn(self) -> None:
        try:
            await self._look_and_do()
            self.failure = None
        except (QmpGone, OtherMachine) as error:
            self._job = None
            self._be(Step(Act.WAIT, UNPROTECTED, error.message), error)
            await self._withdraw()
        except HoldfastError as error:
            self._be(Step(Act.WAIT, UNPROTECTED, error.message), error)
            await self._leave_tap()

    async def _look_and_do(self) -> None:
        tap = await self._reach_tap()
        # The tap first: what it answers is named by a round, and only if that round still stands
        # when QEMU has been asked does the tap take a confirmation.
        view = await tap.act("look")
        await self._identify()
        qemu = await machine.look(self._means.monitor, self.names, self.spec.node)
        self._job, self._refused = qemu.job, view.refused
        step = self._mirror.decide(view, qemu, time.monotonic())
        self._be(step, None)
        if step.is_lost and view.needs == "nothing":
            await tap.act("lost")
        await self._do(step, tap, view, qemu)

    async def _reach_tap(self) -> TapMirror:
        if self._tap is None:
            self._tap = await self._means.connect_tap()
        return self._tap

    async def _leave_tap(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            await tap.close()

    async def _withdraw(self) -> None:
        """QEMU cannot be asked: the tap must not believe an earlier confirmation."""
        try:
            await (await self._reach_tap()).act("lost")
        except HoldfastError as error:
            self.failure = error
            await self._leave_tap()

    async def _identify(self) -> None:
        """Once a connection: another machine at this socket would be mirrored into this journal."""
        if self._is_known:
            return
        found = await machine.identify(self._means.monitor)
        wanted = self.spec.machine
        if found != wanted:
            raise OtherMachine(
                f"{self.spec.qmp} is the socket of machine {found.name or found.uuid or 'unnamed'}"
                f" now, not of {wanted.name or wanted.uuid or 'the one that was attached'}.",
                hint="Detach the disk with --force, and attach the other machine's under a name "
                "of its own.",
            )
        self._is_known = True

    def _be(self, step: Step, failure: HoldfastError | None) -> None:
        if (step.health, step.why) != (self._step.health, self._step.why):
            level = logging.INFO if step.health != UNPROTECTED else logging.WARNING
            _log.log(level, "disk %s: %s: %s", self.spec.disk, step.health, step.why)
        if step.health != self._step.health:
            self._since = time.time()
            if self._step.health == MIRRORED:
                self._losses += 1
                self._lost = {"at": round(self._since, 3), "why": step.why}
        self._step, self.failure = step, failure

    async def _do(self, step: Step, tap: TapMirror, view: TapView, qemu: QemuView) -> None:
        monitor, names = self._means.monitor, self.names
        match step.act:
            case Act.START:
                await self._start(tap, view)
            case Act.RESUME:
                await monitor.execute("block-job-resume", device=names.job)
            case Act.CANCEL:
                self._cancelled_because = step.why
                await monitor.execute("block-job-cancel", device=names.job, force=True)
            case Act.REMOVE_TARGET:
                await monitor.execute("blockdev-del", **{"node-name": names.target})
            case Act.NUDGE:
                await machine.nudge(monitor, names)
            case Act.PAUSE:
                await monitor.execute("block-job-pause", device=names.job)
            case Act.CONFIRM:
                await tap.act("confirm", round=view.round, for_ms=CONFIRM_MS)
                if qemu.job is not None and qemu.job.is_paused:
                    await monitor.execute("block-job-resume", device=names.job)
            case Act.WAIT if qemu.job is not None and step.health == SYNCING:
                await self._pace(qemu.job, view)

    async def _start(self, tap: TapMirror, view: TapView) -> None:
        try:
            node = await machine.find_node(self._means.monitor, self.spec.node)
            await tap.act("begin", size=node.size)
            export = {"socket": self._means.nbd_socket, "name": self.spec.disk}
            begin = first_pace(view.ring_bytes, self._means.copy_limit())
            await machine.start(self._means.monitor, self.names, self.spec.node, export, begin)
        except HoldfastError:
            self._mirror.on_start_failed(time.monotonic())
            raise

    async def _pace(self, job: Job, view: TapView) -> None:
        speed = pace(job.speed, view, self._means.copy_limit())
        if speed != job.speed:
            await self._means.monitor.execute(
                "block-job-set-speed", device=self.names.job, speed=speed
            )

    def again(self) -> Mirroring:
        """A fresh one for the same disk, after `run` was cancelled."""
        return Mirroring(self.spec, self._means)

    async def wait_begun(self, seconds: float) -> None:
        """Return when QEMU runs our job; what stands in the way, as its error; else in vain."""
        deadline = time.monotonic() + seconds
        while self._job is None and time.monotonic() < deadline:
            if isinstance(self.failure, QmpRefused | OtherMachine):
                raise self.failure
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Cancel the job and remove the target; `run` has ended before. QmpGone, QmpRefused."""
        monitor, names = self._means.monitor, self.names
        deadline = time.monotonic() + _END_SECONDS
        while True:
            qemu = await machine.look(monitor, names, self.spec.node)
            if qemu.job is None and not qemu.has_target:
                return
            if time.monotonic() > deadline:
                raise QmpGone("QEMU does not end the mirror job.", retryable=True)
            with contextlib.suppress(QmpRefused):
                # The job ends by itself after it was cancelled, and holds its target until then.
                if qemu.job is not None:
                    await monitor.execute("block-job-cancel", device=names.job, force=True)
                else:
                    await monitor.execute("blockdev-del", **{"node-name": names.target})
            await asyncio.sleep(0.05)
