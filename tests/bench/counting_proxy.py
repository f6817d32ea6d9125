"""Stands before an S3 server and counts the requests that pass."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_RECEIVE_BYTES = 256 * 1024
_LINE_BYTES_MAX = 4096
#: A request's first line. Bodies are sealed bytes: they do not hold one by chance.
_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (/\S*) HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Request:
    """Method and target of one request."""

    method: str
    target: str


@dataclass
class Counter:
    """Requests of all connections, in the order of their arrival."""

    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, method: bytes, target: bytes) -> None:
        """Note one."""
        with self.lock:
            self.requests.append(Request(method.decode(), target.decode(errors="replace")))


class _Finder:
    """Finds request lines in a stream of bytes, across its pieces."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._rest = b""

    def feed(self, data: bytes) -> None:
        text = self._rest + data
        end = 0
        for found in _REQUEST.finditer(text):
            self._counter.add(found[1], found[2])
            end = found.end()
        self._rest = text[end:][-_LINE_BYTES_MAX:]


def _pump(source: socket.socket, target: socket.socket, finder: _Finder | None) -> None:
    with suppress(OSError):
        while data := source.recv(_RECEIVE_BYTES):
            if finder is not None:
                finder.feed(data)
            target.sendall(data)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, address: tuple[str, int], counter: Counter) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(address)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs = ((client, server, _Finder(counter)), (server, client, None))
            for arguments in pairs:
                threading.Thread(target=_pump, args=arguments, daemon=True).start()


@contextmanager
def counting_proxy(endpoint: str) -> Iterator[tuple[str, Counter]]:
    """A new endpoint for the server at `endpoint`, and what passes through it."""
    parts = urlsplit(endpoint)
    assert parts.hostname is not None
    assert parts.port is not None
    counter = Counter()
    listener = socket.create_server(("127.0.0.1", 0))
    address = (parts.hostname, parts.port)
    thread = threading.Thread(target=_serve, args=(listener, address, counter), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", counter
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
