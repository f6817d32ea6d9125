"""Writes known bytes to an NBD export, so that what a journal makes of them can be judged."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.bench.processes import BenchFailed

_MAGIC, _OPTION_MAGIC = 0x4E42444D41474943, 0x49484156454F5054
_REPLY_MAGIC, _REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
_OPT_GO, _REP_ACK, _REP_ERROR = 7, 1, 1 << 31
_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH = 0, 1, 2, 3
_FIXED_NO_ZEROES = 3
_DEPTH = 32


class NbdWriter:
    """A connection that writes, 32 requests in flight. BenchFailed where the server refuses."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(parse_qs(parts.query)["socket"][0])
        self._file = self._socket.makefile("rb")
        self._negotiate(unquote(parts.path).lstrip("/").encode())

    def _negotiate(self, export: bytes) -> None:
        greeting = struct.unpack(">QQH", self._read(18))
        if greeting[:2] != (_MAGIC, _OPTION_MAGIC):
            raise BenchFailed("This is no NBD server of the fixed newstyle.")
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        head = struct.pack(">IQII", _FIXED_NO_ZEROES, _OPTION_MAGIC, _OPT_GO, len(body))
        self._socket.sendall(head + body)
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._read(20))
            said = self._read(length)
            if magic != _REPLY_MAGIC or kind & _REP_ERROR:
                raise BenchFailed(f"The server refused the export: {said!r}")
            if kind == _REP_ACK:
                return

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise BenchFailed("The NBD server closed the connection.")
        return data

    def _reap(self) -> None:
        magic, error, _ = struct.unpack(">IIQ", self._read(16))
        if magic != _SIMPLE_REPLY_MAGIC or error:
            raise BenchFailed(f"The NBD server answered with error {error}.")

    def write_all(self, writes: Sequence[tuple[int, memoryview]], per_second: float) -> None:
        """Write each (offset, bytes) in order, not faster than `per_second`; then flush."""
        begin = time.monotonic()
        for number, (offset, data) in enumerate(writes):
            if number >= _DEPTH:
                self._reap()
            ahead = number / per_second - (time.monotonic() - begin)
            if ahead > 0.01:
                time.sleep(ahead)
            head = self._request(_CMD_WRITE, number, offset, len(data))
            self._socket.sendmsg([head, data])
        for _ in range(min(len(writes), _DEPTH)):
            self._reap()
        self._socket.sendall(self._request(_CMD_FLUSH, len(writes), 0, 0))
        self._reap()

    def write_one(self, offset: int, data: memoryview) -> None:
        """Write, and wait until the server accepted it."""
        self._socket.sendmsg([self._request(_CMD_WRITE, 0, offset, len(data)), data])
        self._reap()

    @staticmethod
    def _request(command: int, cookie: int, offset: int, length: int) -> bytes:
        return struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, command, cookie, offset, length)

    def close(self) -> None:
        """Say goodbye."""
        self._socket.sendall(self._request(_CMD_DISC, 0, 0, 0))
        self._file.close()
        self._socket.close()


class NbdReader(NbdWriter):
    """A connection that reads, one request at a time. Use as a context manager."""

    def __enter__(self) -> NbdReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the export; BenchFailed where the server answers with an error."""
        self._socket.sendall(self._request(_CMD_READ, 0, offset, length))
        self._reap()
        return self._read(length)


def corpus(size: int) -> bytes:
    """Bytes such as a file server keeps: programs, libraries and text of this machine, in order."""
    gathered = bytearray()
    for folder in ("/usr/lib/python3", "/usr/share", "/usr/lib", "/usr/bin"):
        for path in sorted(Path(folder).rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            gathered += path.read_bytes()
            if len(gathered) >= size:
                return bytes(gathered[:size])
    raise BenchFailed(f"This machine has no {size} bytes of files to write.")
