"""The tap's control sockets as a benchmark needs them: one request, one answer."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

from host_agent.wire import tapctl

_ANSWER_SECONDS_MAX = 30.0
_CONNECT_SECONDS_MAX = 10.0
_DESCRIPTORS_MAX = 4


class Control:
    """A connection to `tap.sock` or to a stream's socket; TapRefused where the tap refuses."""

    def __init__(self, path: Path | str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_ANSWER_SECONDS_MAX)
        self._connect(str(path))
        self._number = 0
        self._lock = threading.Lock()
        self.descriptors: list[int] = []

    def _connect(self, path: str) -> None:
        """A socket's name is there a moment before anybody listens."""
        deadline = time.monotonic() + _CONNECT_SECONDS_MAX
        while True:
            try:
                return self._socket.connect(path)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def call(self, verb: str, **fields: object) -> dict[str, Any]:
        """Ask, and wait for the answer; one thread at a time. Descriptors that come stay open."""
        with self._lock:
            return self._call(verb, fields)

    def _call(self, verb: str, fields: dict[str, object]) -> dict[str, Any]:
        self._number += 1
        self._socket.send(tapctl.request(self._number, verb, **fields))
        while True:
            data, received, _, _ = socket.recv_fds(self._socket, 65536, _DESCRIPTORS_MAX)
            if not data:
                raise ConnectionError(f"The tap closed the connection at {verb}.")
            self.descriptors += received
            message = tapctl.decode(data)
            if message.get("id") == self._number:
                return tapctl.answer(message)
