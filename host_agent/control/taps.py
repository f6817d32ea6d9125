"""The host's one tap: reaching it, starting it, and the streams that it has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from host_agent.control.config import GroupConfig, TapConfig
from host_agent.control.errors import TapBinaryMissing, TapNotRunning
from host_agent.control.tap_client import (
    Fields,
    TapChannel,
    TapStream,
    connect,
    not_attached,
)
from host_agent.stream.errors import StreamTaken
from host_agent.wire import tapctl

_START_SECONDS = 10.0
#: Attaching makes and touches a ring and waits for the disk's lock; detaching flushes.
_ATTACH_SECONDS = 60.0


class TapHost:
    """Everything that the agent asks of the tap besides streams."""

    def __init__(self, config: TapConfig) -> None:
        self._config = config
        self._starting = asyncio.Lock()
        self.hello: Fields = {}

    @property
    def socket(self) -> Path:
        """The tap's own control socket."""
        return self._config.run_dir / "tap.sock"

    def stream_socket(self, group: str) -> Path:
        """The control socket of a group's stream; it is there once a disk was attached."""
        return self._config.run_dir / f"{group}.stream"

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[TapChannel]:
        """A greeted control connection, the tap started if need be; TapNotRunning."""
        channel = await self._reach()
        try:
            self.hello = await channel.call("hello", version=tapctl.VERSION)
            yield channel
        finally:
            await channel.close()

    async def status(self) -> Fields:
        """Everything that the tap counts."""
        async with self.channel() as channel:
            return await channel.call("status")

    async def attach(self, group: GroupConfig, disk: str, path: str, cache: str) -> Fields:
        """Attach a disk: `uri, nbd_socket, stream_socket, size, number`."""
        async with self.channel() as channel:
            return await channel.call(
                "attach",
                seconds=_ATTACH_SECONDS,
                group=group.name,
                disk=disk,
                path=path,
                cache=cache,
                ring_bytes=group.ring_bytes,
                hold_ms_max=group.hold_ms_max,
            )

    def nbd_socket(self, group: str) -> Path:
        """Where a group's clients connect, as the tap names it."""
        return self._config.run_dir.resolve() / f"{group}.nbd"

    async def attach_mirror(self, group: GroupConfig, disk: str, size: int) -> Fields:
        """Serve a disk that QEMU keeps and mirrors here; answers as `attach` does."""
        async with self.channel() as channel:
            return await channel.call(
                "attach",
                seconds=_ATTACH_SECONDS,
                group=group.name,
                disk=disk,
                mode="mirror",
                size=size,
                ring_bytes=group.ring_bytes,
                hold_ms_max=group.hold_ms_max,
            )

    async def detach(self, group: str, disk: str, *, force: bool) -> None:
        """Detach a disk; refused while a client is connected unless forced."""
        async with self.channel() as channel:
            await channel.call(
                "detach", seconds=_ATTACH_SECONDS, group=group, disk=disk, force=force
            )

    async def close(self, group: str) -> None:
        """Give back what a group has whose last disk is detached; TapRefused."""
        async with self.channel() as channel:
            await channel.call("close", seconds=_ATTACH_SECONDS, group=group)

    async def _reach(self) -> TapChannel:
        try:
            return await connect(self.socket)
        except TapNotRunning:
            if not self._config.autostart:
                raise
        async with self._starting:
            try:
                return await connect(self.socket)
            except TapNotRunning:
                await self._start()
            return await connect(self.socket)

    async def _start(self) -> None:
        """Start the tap so that it outlives this process, and wait until it answers."""
        log = self._config.state_dir / "tap.log"
        process = _spawn(self._binary(), self._config, log)
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(TapNotRunning):
                await (await connect(self.socket)).close()
                return
            if process.poll() is not None:
                raise TapBinaryMissing(
                    f"holdfast-tap ended at once with status {process.returncode}.",
                    hint=f"See {log}.",
                )
            await asyncio.sleep(0.05)
        raise TapNotRunning("The tap was started but does not answer.", hint=f"See {log}.")

    def _binary(self) -> Path:
        if self._config.binary is not None:
            return self._config.binary
        beside = Path(sys.executable).parent / "holdfast-tap"
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which("holdfast-tap")
        if found is None:
            raise TapBinaryMissing(
                "The program holdfast-tap was not found.",
                hint="Install holdfast-agent for this platform, or set binary in [tap].",
            )
        return Path(found)


def _spawn(binary: Path, config: TapConfig, log: Path) -> subprocess.Popen[bytes]:
    for directory in (config.run_dir, config.state_dir):
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    arguments = [str(binary), "--run-dir", str(config.run_dir)]
    arguments += ["--state-dir", str(config.state_dir)]
    with log.open("ab") as output:
        # A session of its own: what ends the agent, a terminal or a signal, leaves the tap alone.
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class TapDoor:
    """Connects one group's stream; a stream's ConnectTap."""

    def __init__(self, host: TapHost, group: str) -> None:
        self._host = host
        self._group = group
        self._last: TapStream | None = None
        self._last_pid: object = None

    def forget(self) -> None:
        """The connection is about to end for a reason that we know."""
        self._last = None

    async def __call__(self) -> TapStream:
        """Connect; TapNotRunning, NotAttached, or StreamTaken if another opener has it now."""
        async with self._host.channel():
            pid = self._host.hello.get("pid")
        self._refuse_if_taken(pid)
        try:
            channel = await connect(self._host.stream_socket(self._group))
        except TapNotRunning:
            raise not_attached(self._group) from None
        self._last, self._last_pid = TapStream(channel), pid
        return self._last

    def _refuse_if_taken(self, pid: object) -> None:
        last, self._last = self._last, None
        if last is not None and last.channel.was_ended_by_tap and pid == self._last_pid:
            raise StreamTaken(
                f"Another process on this host opened the stream of group {self._group}.",
                hint="Stop the other agent, then run: holdfast-agent resume " + self._group,
            )


def find_group(status: Fields, name: str) -> Fields | None:
    """A group in the tap's status, or None."""
    for group in status.get("groups", []):
        if isinstance(group, dict) and group.get("group") == name:
            return group
    return None
