"""QMP: one connection to a running QEMU, and a monitor that connects again and is shared.

A QMP socket serves one client at a time, so everything of this process that asks one machine goes
through one Monitor.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from host_agent.hypervisor.errors import QmpGone, QmpRefused

Fields = dict[str, Any]
#: Called with each event, and with None when the connection is gone.
Listener = Callable[[Fields | None], None]

#: A machine with many disks answers query-named-block-nodes with some hundred KiB.
_LINE_BYTES_MAX = 16 << 20
_GREETING_SECONDS = 2.0
ANSWER_SECONDS = 5.0


class Qmp:
    """One connection. Requests may overlap; each gets its own answer."""

    def __init__(
        self,
        path: Path,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        tell: Listener,
    ) -> None:
        self.version = ""
        self._path = path
        self._reader, self._writer = streams
        self._tell = tell
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Fields]] = {}
        self._closed: QmpGone | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it ended."""
        return self._closed is not None

    async def greet(self) -> None:
        """Read QEMU's greeting and agree on nothing special; QmpGone."""
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                greeting = _parse(await self._reader.readline()).get("QMP")
        except TimeoutError:
            raise QmpGone(
                f"{self._path} accepts a connection, but does not greet.",
                hint="A QMP socket serves one client at a time. Give the machine one for Holdfast: "
                "-qmp unix:PATH,server=on,wait=off",
                retryable=True,
            ) from None
        except (OSError, ValueError):
            greeting = None
        if not isinstance(greeting, dict):
            raise QmpGone(f"What answers at {self._path} does not speak QMP.", retryable=True)
        number = greeting.get("version", {}).get("qemu", {})
        self.version = ".".join(str(number.get(part)) for part in ("major", "minor", "micro"))
        self._task = asyncio.create_task(self._read(), name=f"qmp {self._path}")
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """One command and what it returns; QmpRefused or QmpGone."""
        if self._closed is not None:
            raise self._closed
        self._number += 1
        number = self._number
        future: asyncio.Future[Fields] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        request = {"execute": command, "arguments": arguments, "id": number}
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                self._writer.write(msgspec.json.encode(request) + b"\n")
                await self._writer.drain()
                answer = await future
        except TimeoutError:
            self._end(f"QEMU at {self._path} did not answer {command} in {ANSWER_SECONDS:g} s.")
            raise self._gone() from None
        except OSError as error:
            self._end(f"The QMP socket {self._path} broke: {error.strerror}.")
            raise self._gone() from None
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise QmpRefused(command, str(answer["error"].get("desc", "no reason given")))
        return answer.get("return")

    def _gone(self) -> QmpGone:
        assert self._closed is not None
        return self._closed

    async def _read(self) -> None:
        why = f"QEMU ended, or closed its QMP socket {self._path}."
        try:
            while line := await self._reader.readline():
                self._dispatch(_parse(line))
        except (OSError, ValueError) as error:
            why = f"The QMP socket {self._path} broke: {error}."
        finally:
            self._end(why)

    def _dispatch(self, message: Fields) -> None:
        if "event" in message:
            self._tell(message)
            return
        number = message.get("id")
        future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is not None and not future.done():
            future.set_result(message)

    def _end(self, why: str) -> None:
        if self._closed is not None:
            return
        self._closed = QmpGone(
            why,
            hint="Look whether the machine runs, and whether its socket is there.",
            retryable=True,
        )
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._closed)
                # Nobody may be waiting for it any more.
                future.exception()
        self._waiting.clear()
        self._tell(None)

    async def close(self) -> None:
        """End the connection. Idempotent."""
        self._end("The QMP connection was closed.")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _parse(line: bytes) -> Fields:
    message = msgspec.json.decode(line)
    if not isinstance(message, dict):
        raise ValueError("a QMP message is an object")  # noqa: TRY004 - of bytes, not of a caller
    return message


class Monitor:
    """One machine's QMP socket for all who ask: connects when it must, and hands events on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._qmp: Qmp | None = None
        self._connecting = asyncio.Lock()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear events from now on; call what is returned to hear no more."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, event: Fields | None) -> None:
        for listener in list(self._listeners):
            listener(event)

    @property
    def version(self) -> str:
        """QEMU's version; empty before the first connection."""
        return self._qmp.version if self._qmp else ""

    async def execute(self, command: str, **arguments: Any) -> Any:
        """One command, over a new connection if need be; QmpRefused or QmpGone."""
        qmp = await self._reach()
        return await qmp.execute(command, **arguments)

    async def _reach(self) -> Qmp:
        async with self._connecting:
            if self._qmp is None or self._qmp.is_closed:
                self._qmp = None
                self._qmp = await self._connect()
            return self._qmp

    async def _connect(self) -> Qmp:
        try:
            async with asyncio.timeout(_GREETING_SECONDS):
                streams = await asyncio.open_unix_connection(self.path, limit=_LINE_BYTES_MAX)
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or "no answer"
            raise QmpGone(
                f"No QEMU answers at {self.path}: {reason}.",
                hint="Look whether the machine runs; start it with "
                "-qmp unix:PATH,server=on,wait=off",
                retryable=True,
            ) from None
        qmp = Qmp(self.path, streams, self._tell)
        try:
            await qmp.greet()
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def close(self) -> None:
        """End the connection. A later command connects again."""
        with contextlib.suppress(QmpGone):
            if self._qmp is not None:
                await self._qmp.close()
        self._qmp = None


class Monitors:
    """All machines' monitors, by socket."""

    def __init__(self) -> None:
        self._by_path: dict[Path, Monitor] = {}

    def of(self, path: Path) -> Monitor:
        """The one monitor of that socket."""
        return self._by_path.setdefault(path, Monitor(path))

    @property
    def paths(self) -> list[Path]:
        """The sockets that were asked for so far."""
        return list(self._by_path)

    async def close(self) -> None:
        """End all connections."""
        for monitor in self._by_path.values():
            await monitor.close()
