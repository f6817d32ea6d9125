"""Starts processes of the service as forks of one that has what they share imported already.

Each of them has Python's web and database libraries; on one machine they have them once, in pages
that they share, and start without reading them again. See `workers.cli.nursery` for the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from io import BufferedWriter
from pathlib import Path
from typing import Any

from app.embedded.supervisor import ProcessFailed, Program, ending_with_parent

_MESSAGE_BYTES_MAX = 64 * 1024


class Fork:
    """A process of the nursery's; the supervisor's view of it. Signals go to it and no other."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._handle = handle
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """How it ended: its status, or minus the signal's number."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """ProcessLookupError if it is gone."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """As `send_signal`."""
        self.send_signal(signal.SIGKILL)

    def ended(self, returncode: int) -> None:
        """It is no more."""
        if self.returncode is None:
            self.returncode = returncode
            os.close(self._handle)
            self._ended.set()

    def forsaken(self) -> None:
        """Nobody will tell how it ends. It was told to, as its parent has gone."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self._handle)
            self.ended(-signal.SIGTERM)

        loop.add_reader(self._handle, gone)


class Nursery:
    """One parent process, begun with `begin` or with the first launch, and again if it dies.

    It and its forks show the installation's folder to whoever lists processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._end: socket.socket | None = None
        self._forks: dict[int, Fork] = {}
        self._asked: asyncio.Future[Fork] | None = None
        self._turn = asyncio.Lock()

    async def begin(self) -> None:
        """Start it: it imports what an API needs while other things go on."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = await asyncio.create_subprocess_exec(
                *ending_with_parent([sys.executable, "-m", "workers.cli.nursery"]),
                str(its.fileno()),
                self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                process_group=0,
            )
        ours.setblocking(False)
        self._end = ours
        asyncio.get_running_loop().add_reader(ours, self._read, ours)

    async def launch(self, program: Program, log: BufferedWriter) -> Fork:
        """Fork the process of the program's name; ProcessFailed."""
        async with self._turn:
            if self._end is None:
                await self.begin()
            assert self._end is not None
            order = {"verb": program.name, "environment": {**os.environ, **program.environment}}
            self._asked = asyncio.get_running_loop().create_future()
            try:
                socket.send_fds(self._end, [json.dumps(order).encode()], [log.fileno()])
            except OSError:
                raise _gone() from None
            return await self._asked

    def _read(self, end: socket.socket) -> None:
        try:
            told, handles, _, _ = socket.recv_fds(end, _MESSAGE_BYTES_MAX, 1)
        except BlockingIOError:
            return
        except OSError:
            told, handles = b"", []
        if told:
            self._hear(json.loads(told), handles)
        else:
            self._lose(end)

    def _hear(self, told: dict[str, Any], handles: list[int]) -> None:
        pid = told["pid"]
        if "status" in told:
            self._forks.pop(pid).ended(told["status"])
            return
        self._forks[pid] = fork = Fork(pid, handles[0])
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(fork)

    def _lose(self, end: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(end)
        end.close()
        self._end = None
        for fork in self._forks.values():
            fork.forsaken()
        self._forks.clear()
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(_gone())

    async def stop(self) -> None:
        """End the parent; what it has forked is to be ended before."""
        if self._end is not None:
            asyncio.get_running_loop().remove_reader(self._end)
            self._end.close()
            self._end = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()


def _gone() -> ProcessFailed:
    return ProcessFailed("The parent of the processes ended.", retryable=True)
