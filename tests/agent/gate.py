"""The broken variant for A1: in front of the tap's socket, answers wait until the agent answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

#: An agent that was asked this long ago, and has not answered since, is waited for.
_FRESH_SECONDS = 0.3


class Gate:
    """Relays an NBD connection. What the tap answers goes on only while the agent answers, too."""

    def __init__(self, listen: Path, tap: Path, agent: Path) -> None:
        self.path = listen
        self._tap, self._agent = tap, agent
        self._heard_at = time.monotonic()
        self._ending = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._ask, self._accept)
        ]

    def _ask(self) -> None:
        while not self._ending.wait(0.05):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(_FRESH_SECONDS)
                sock.connect(str(self._agent))
                sock.sendall(b'{"do":"status"}\n')
                if sock.recv(1):
                    self._heard_at = time.monotonic()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                tap = socket.socket(socket.AF_UNIX)
                self._sockets += [sock, tap]
                tap.connect(str(self._tap))
                for source, target, waits in ((sock, tap, False), (tap, sock, True)):
                    work = threading.Thread(
                        target=self._pass, args=(source, target, waits), daemon=True
                    )
                    self._threads.append(work)
                    work.start()

    def _pass(self, source: socket.socket, target: socket.socket, waits: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while waits and time.monotonic() - self._heard_at > _FRESH_SECONDS:
                    if self._ending.wait(0.01):
                        return
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        for thread in list(self._threads):
            thread.start()

    def stop(self) -> None:
        self._ending.set()
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in (self._listener, *self._sockets):
            sock.close()


@contextlib.contextmanager
def gated(listen: Path, tap: Path, agent: Path) -> Iterator[Gate]:
    """A gate inside the block."""
    gate = Gate(listen, tap, agent)
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()
