"""The processes of a data node: forked by the zygote, told apart, reaped, started again.

All of them are ours to reap, also those of a zygote that was killed: they go on, and a new zygote
forks the next ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from workers.ingest.log import Log
from workers.supervisor.channel import Channel, Message, make_pair
from workers.supervisor.state import Life
from workers.supervisor.system import become_subreaper

#: An ingest commits what it has within 5 s.
_STOP_SECONDS_MAX = 6.0
#: A process reports every 2 s. One that was silent for so long does nothing any more.
SILENT_SECONDS_MAX = 60.0
_WATCH_SECONDS = 5.0


class Handle:
    """One process of the system by a descriptor, which never comes to mean another one."""

    def __init__(self, descriptor: int, pid: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(descriptor, self._reap)

    def kill(self) -> None:
        """At once, if it is still there."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        try:
            found = os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED)
        except ChildProcessError:
            found = None
        os.close(self._descriptor)
        self.ended.set_result(_how(found))


def _how(found: os.waitid_result | None) -> str:
    if found is None:
        return "ended"
    if found.si_code == os.CLD_EXITED:
        return f"exit status {found.si_status}"
    return f"signal {found.si_status}"


@dataclass
class Process:
    """One kind of work through its lives. `on_begin` is called at the start of each."""

    kind: str
    name: str
    on_begin: Callable[[Process], None]
    on_message: Callable[[Message, list[int]], None]
    life: Life = field(default_factory=Life)
    channel: Channel | None = None
    handle: Handle | None = None
    is_ready: bool = False
    is_wanted: bool = True
    heard_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """Of the newest process."""
        return self.handle.pid if self.handle else None

    @property
    def is_running(self) -> bool:
        """Whether it can be sent something."""
        return self.channel is not None

    def send(self, message: Message, *passed: socket.socket) -> None:
        """Send to the process that runs now; passed sockets are closed in any case."""
        if self.channel is not None:
            self.channel.send(message, *passed)
        else:
            for one in passed:
                one.close()

    def as_dict(self, now: float) -> dict[str, object]:
        """For `status`."""
        state = "ready" if self.is_ready else "starting" if self.is_running else "waiting"
        return {"state": state, "pid": self.pid, **self.life.as_dict(now)}


class Processes:
    """Starts processes and keeps them running until they are not wanted any more."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._zygote = Process("zygote", "zygote", lambda _: None, lambda *_: None)
        self._all: list[Process] = []
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin; OSError."""
        become_subreaper()
        self._spawn_zygote()
        self._watching = asyncio.create_task(self._watch())

    @property
    def zygote(self) -> Process:
        """The parent of all others."""
        return self._zygote

    def add(self, process: Process) -> Process:
        """Start it, and again whenever it dies."""
        self._all.append(process)
        self._launch(process)
        return process

    async def remove(self, process: Process) -> None:
        """End it in order; what takes too long is killed."""
        process.is_wanted = False
        if process in self._all:
            self._all.remove(process)
        await self._end(process)

    async def stop(self) -> None:
        """End all, those that were added last first, the zygote at the end."""
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        for process in self._all:
            process.is_wanted = False
        await asyncio.gather(*(self._end(process) for process in reversed(self._all)))
        await self._end(self._zygote)

    # --- beginnings

    def _spawn_zygote(self) -> None:
        ours, theirs = make_pair()
        os.set_inheritable(theirs.fileno(), True)
        zygote = self._zygote
        words = [sys.executable, "-m", "workers.supervisor.zygote", str(theirs.fileno())]
        pid = os.posix_spawn(sys.executable, words, environment(os.environ))
        theirs.close()
        zygote.handle = Handle(os.pidfd_open(pid), pid)
        self._began(zygote, ours)
        zygote.is_ready = True
        for process in self._all:
            if process.channel is None and process.life.due_at <= self._loop.time():
                self._launch(process)

    def _launch(self, process: Process) -> None:
        if not process.is_wanted or process.channel is not None:
            return
        if self._zygote.channel is None:
            return  # it is started when there is one again
        ours, theirs = make_pair()
        process.handle, process.is_ready = None, False
        self._began(process, ours)
        self._zygote.send({"kind": process.kind}, theirs)
        process.on_begin(process)

    def _began(self, process: Process, ours: socket.socket) -> None:
        now = self._loop.time()
        process.heard_at = now
        process.life.started(now)
        process.channel = Channel(
            ours,
            lambda message, descriptors: self._on_message(process, message, descriptors),
            lambda: self._on_lost(process),
        )

    def _on_message(self, process: Process, message: Message, descriptors: list[int]) -> None:
        process.heard_at = self._loop.time()
        if message["type"] == "here":
            process.handle = Handle(descriptors[0], message["pid"])
        elif message["type"] == "ready":
            process.is_ready = True
        elif message["type"] == "failed":
            process.life.reason = f"{message['code']}: {message['message']}"
        process.on_message(message, descriptors)

    # --- ends

    def _on_lost(self, process: Process) -> None:
        said, process.life.reason = process.life.reason, None
        process.channel, process.is_ready = None, False
        if process.handle is not None:
            process.handle.kill()
        if not process.is_wanted or self._stopping:
            return
        wait = process.life.died(self._loop.time(), said or "ended")
        self._log.warning("process_died", process=process.name, pid=process.pid, wait=wait)
        task = asyncio.create_task(self._again(process, said, wait))
        _KEPT.add(task)
        task.add_done_callback(_KEPT.discard)

    async def _again(self, process: Process, said: str | None, wait: float) -> None:
        if said is None and process.handle is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    process.life.reason = await asyncio.shield(process.handle.ended)
        await asyncio.sleep(max(0.0, process.life.due_at - self._loop.time()))
        if self._stopping:
            return
        if process is self._zygote:
            self._spawn_zygote()
        else:
            self._launch(process)

    async def _end(self, process: Process) -> None:
        if process.channel is not None:
            process.channel.close()  # it takes this for the wish to end
            process.channel = None
        if process.handle is None:
            return
        try:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await asyncio.shield(process.handle.ended)
        except TimeoutError:
            self._log.warning("process_killed", process=process.name, pid=process.pid)
            process.handle.kill()
            await process.handle.ended

    async def _watch(self) -> None:
        """End what is silent: its death starts it again."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = self._loop.time()
            for process in self._all:
                if process.handle and now - process.heard_at > SILENT_SECONDS_MAX:
                    process.life.reason = f"silent for {SILENT_SECONDS_MAX:g} s"
                    process.handle.kill()
            _reap_nameless()


def _reap_nameless() -> None:
    """Processes that died before they could say who they are."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


#: Tasks that nobody waits for: asyncio itself holds them only weakly.
_KEPT: set[asyncio.Task[None]] = set()


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What the zygote, and so every tenant's process, is told: no credentials, no settings."""
    kept = {
        name: value
        for name, value in ours.items()
        if not name.startswith(("AWS_", "HOLDFAST_")) or name == "HOLDFAST_FAILPOINT"
    }
    # Its threads would not survive a fork, and numpy needs none here.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
