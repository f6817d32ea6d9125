"""The tenants of this host: a process for each, started and watched by a parent with no secrets.

The parent is single-threaded, has loaded what its children need, and has never read a key, so that
its children share its memory and nothing of each other. What is to run lies on disk: the identity's
folder itself, and one below `tenants/` for each tenant that was placed here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import select
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from host_agent.control import placements
from host_agent.control.errors import AgentRunning
from host_agent.control.host_settings import HostSettings, load_settings
from host_agent.control.managed import ManagedHost, ManagedSettings
from host_agent.control.managed_process import run_host, wipe_host
from host_agent.control.means import RealRandom
from host_agent.control.state_dir import usable
from host_agent.stream.pace import Backoff
from host_agent.wire.errors import HoldfastError

_log = logging.getLogger("holdfast.agent")

#: A child that ran so long was a good one: its next end is followed by a short wait.
_HEALTHY_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LOOK_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
#: Frames of all groups of a placed tenant: a host may have many tenants.
_PLACED_FRAME_BYTES = 12 << 20
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
#: Exit statuses of a child that wiped: all is gone, or a machine still uses a disk.
_WIPED, _IN_USE = 0, 3


@dataclass
class Child:
    """A tenant's process, and how it went so far."""

    name: str
    backoff: Backoff
    pid: int | None = None
    is_wiping: bool = False
    started_at: float = 0.0
    due_at: float = 0.0


class Parent:
    """Runs until SIGTERM or SIGINT. Makes no thread, loop or TLS context."""

    def __init__(self, directory: Path, settings: HostSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._random = RealRandom()
        self._children: dict[str, Child] = {"": self._child("")}
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_stopping = False

    def _child(self, name: str) -> Child:
        return Child(name, Backoff(self._random))

    def run(self) -> None:
        """Keep the children running; returns when all have ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        while not self._is_stopping:
            self._reap()
            self._look()
            for child in list(self._children.values()):
                if child.pid is None and child.due_at <= time.monotonic():
                    self._start(child)
            self._wait()
        self._stop()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._is_stopping = True

    def _wait(self) -> None:
        """Until a signal, a child's word, or the next start is due."""
        now = time.monotonic()
        due = [child.due_at - now for child in self._children.values() if child.pid is None]
        select.select([self._wake], [], [], max(0.0, min([_LOOK_SECONDS, *due])))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    # --- which children there should be

    def _look(self) -> None:
        for tenant in placements.tenants(self._directory):
            child = self._children.setdefault(tenant, self._child(tenant))
            is_withdrawn = placements.is_withdrawn(self._directory, tenant)
            if is_withdrawn and not child.is_wiping:
                child.is_wiping = True
                child.due_at = 0.0
                if child.pid is not None:
                    _signal(child.pid, signal.SIGTERM)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((one for one in self._children.values() if one.pid == pid), None)
            if child is not None:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, code: int) -> None:
        now = time.monotonic()
        child.pid = None
        if child.is_wiping and code == _WIPED and placements.is_wiped(self._directory, child.name):
            self._remove(child)
            return
        if now - child.started_at > _HEALTHY_SECONDS:
            child.backoff.reset()
        wait = child.backoff.next()
        child.due_at = now + wait
        if not self._is_stopping and not (child.is_wiping and code == _IN_USE):
            _log.error("the process of %s ended with %d; again in %.1f s", _of(child), code, wait)

    def _remove(self, child: Child) -> None:
        with usable(self._directory):
            shutil.rmtree(placements.folder(self._directory, child.name))
        del self._children[child.name]
        _log.info("tenant %s is gone from this host", child.name)

    # --- starting and stopping

    def _start(self, child: Child) -> None:
        child.started_at = time.monotonic()
        pid = os.fork()
        if pid:
            child.pid = pid
            return
        code = 1
        try:
            code = self._be(child)
        except HoldfastError as error:
            print(f"holdfast-agent: {_of(child)}: {error.message} {error.hint}", file=sys.stderr)
            if child.name:
                with contextlib.suppress(HoldfastError):
                    placements.note_failure(placements.folder(self._directory, child.name), error)
        except BaseException:  # noqa: BLE001 - this process ends here, and says why
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _be(self, child: Child) -> int:
        """What the child does with its life; its exit status."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._wake)
        _die_with_parent()
        if not child.name:
            return self._be_owner()
        os.close(self._wake_write)
        _name_log(child.name)
        settings = self._settings_of(child.name)
        if child.is_wiping:
            return _be_wiper(settings)
        placements.join(settings.directory)
        run_host(settings)
        return 0

    def _be_owner(self) -> int:
        wake = self._wake_write

        def prepare(host: ManagedHost) -> None:
            placements.Placements(self._directory, lambda: os.write(wake, b".")).add_to(host)

        inventory = self._settings.inventory
        run_host(ManagedSettings(self._directory, self._settings, inventory), prepare)
        return 0

    def _settings_of(self, tenant: str) -> ManagedSettings:
        inventory = self._settings.placed.inventory(tenant)
        folder = placements.folder(self._directory, tenant)
        return ManagedSettings(folder, self._settings, inventory, _PLACED_FRAME_BYTES)

    def _stop(self) -> None:
        running = [child for child in self._children.values() if child.pid is not None]
        for child in running:
            assert child.pid is not None
            _signal(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while any(child.pid is not None for child in running):
            self._reap()
            if time.monotonic() > deadline:
                for child in running:
                    if child.pid is not None:
                        _signal(child.pid, signal.SIGKILL)
            select.select([self._wake], [], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)


def run_parent(directory: Path) -> int:
    """Serve until SIGTERM or SIGINT; HoldfastError if it cannot start."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
    directory = directory.absolute()
    placements.check_owner(directory)
    settings = load_settings(directory)
    lock = _lock(directory)
    try:
        # Children share what is loaded now, as long as nobody writes to it.
        gc.collect()
        gc.freeze()
        Parent(directory, settings).run()
    finally:
        os.close(lock)
    return 0


def _lock(directory: Path) -> int:
    with usable(directory):
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise AgentRunning(
            f"Another agent works with {directory}.", hint="Stop it first."
        ) from None
    return descriptor


def _be_wiper(settings: ManagedSettings) -> int:
    if not placements.has_identity(settings.directory):
        return _WIPED
    return _WIPED if wipe_host(settings) else _IN_USE


def _die_with_parent() -> None:
    """Orphans would keep a tenant's locks and connections from who comes after."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        os._exit(1)


def _name_log(tenant: str) -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {tenant}: %(message)s"))


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _of(child: Child) -> str:
    return f"tenant {child.name}" if child.name else "this host's owner"
