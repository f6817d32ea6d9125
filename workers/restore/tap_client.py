"""Talking to the tap from a restore: requests, answers and events on one socket. FORMAT.md section
3."""

from __future__ import annotations

import array
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from host_agent.wire import limits, tapctl
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.tapctl import Fields
from workers.restore.errors import TapFailed

#: The tap answers at once; a fill waits for its disk.
ANSWER_SECONDS = 30.0


def _ignore(_: Fields) -> None:
    """Events that nobody asked for."""


class TapChannel:
    """One connection. `call` and `post` may be used by several threads; events come in the
    channel's own."""

    def __init__(self, path: Path, on_event: Callable[[Fields], None] = _ignore) -> None:
        """Connect to a socket of the tap; TapFailed."""
        self._on_event = on_event
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Fields]] = {}
        self._next = 0
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise TapFailed(
                f"The tap does not answer at {path}: {error.strerror}.", retryable=True
            ) from error
        self._thread = threading.Thread(target=self._read, name="holdfast-tap", daemon=True)
        self._thread.start()

    def call(
        self, verb: str, fields: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> Fields:
        """Ask and wait for the answer; TapRefused, TapFailed."""
        future = self.post(verb, fields, fds)
        try:
            return tapctl.answer(future.result(ANSWER_SECONDS))
        except TimeoutError:
            raise TapFailed(f"The tap did not answer {verb} in {ANSWER_SECONDS:.0f} s.") from None

    def post(
        self, verb: str, fields: Mapping[str, object] | None = None, fds: Sequence[int] = ()
    ) -> Future[Fields]:
        """Ask; the future holds the answer, which may be a refusal. TapFailed."""
        future: Future[Fields] = Future()
        with self._lock:
            if self._closed:
                raise TapFailed("The connection to the tap is closed.")
            self._next += 1
            number = self._next
            self._waiting[number] = future
        data = tapctl.request(number, verb, **(fields or {}))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights)
        except OSError as error:
            with self._lock:
                self._waiting.pop(number, None)
            raise TapFailed(f"The connection to the tap broke: {error.strerror}.") from error
        return future

    def _read(self) -> None:
        problem: HoldfastError = TapFailed("The tap closed the connection.")
        try:
            while data := self._socket.recv(limits.TAP_MESSAGE_BYTES_MAX + 1):
                self._take(tapctl.decode(data))
        except OSError as error:
            problem = TapFailed(f"The connection to the tap broke: {error.strerror}.")
        except WireError as error:
            problem = error
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(problem)

    def _take(self, message: Fields) -> None:
        if "event" in message:
            self._on_event(message)
            return
        number = message.get("id")
        with self._lock:
            future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is not None:
            future.set_result(message)

    def close(self) -> None:
        """End the connection; what still waits fails with TapFailed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(ANSWER_SECONDS)
        self._socket.close()
