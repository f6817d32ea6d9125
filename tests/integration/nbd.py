"""A small NBD client: one request at a time, so that the order of records is known beforehand."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

_GREETING, _OPTION = 0x4E42444D41474943, 0x49484156454F5054
_OPTION_REPLY, _REQUEST, _SIMPLE_REPLY = 0x3E889045565A9, 0x25609513, 0x67446698
_GO, _ACK, _INFO, _ERROR = 7, 1, 3, 1 << 31
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
CHUNK = 1 << 20


class NbdFault(Exception):
    """The server answered with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"NBD error {number}")
        self.number = number


class NbdClient:
    """A connection to one export. OSError or EOFError where the server is gone."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(parse_qs(parts.query)["socket"][0])
        self._file = self._socket.makefile("rb")
        self.size = self._negotiate(unquote(parts.path).lstrip("/").encode())
        self._cookie = 0

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exactly(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise EOFError("the NBD server closed the connection")
        return data

    def _negotiate(self, export: bytes) -> int:
        assert struct.unpack(">QQ", self._exactly(16)) == (_GREETING, _OPTION)
        self._exactly(2)
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        head = struct.pack(">IQII", 3, _OPTION, _GO, len(body))
        self._socket.sendall(head + body)
        size = -1
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._exactly(20))
            said = self._exactly(length)
            assert magic == _OPTION_REPLY
            if kind & _ERROR:
                raise NbdFault(kind)
            if kind == _INFO and said[:2] == b"\0\0":
                size = struct.unpack(">Q", said[2:10])[0]
            if kind == _ACK:
                return size

    def _ask(
        self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> None:
        self._cookie += 1
        head = struct.pack(">IHHQQI", _REQUEST, flags, command, self._cookie, offset, length)
        self._socket.sendall(head + data)
        magic, error, cookie = struct.unpack(">IIQ", self._exactly(16))
        assert (magic, cookie) == (_SIMPLE_REPLY, self._cookie)
        if error:
            raise NbdFault(error)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        self._ask(_READ, offset, length)
        return self._exactly(length)

    def read_all(self) -> bytes:
        """The whole disk."""
        return b"".join(
            self.read(at, min(CHUNK, self.size - at)) for at in range(0, self.size, CHUNK)
        )

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write, and wait for the answer."""
        self._ask(_WRITE, offset, len(data), data, FUA if fua else 0)

    def zero(self, offset: int, length: int) -> None:
        """WRITE_ZEROES."""
        self._ask(_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        """TRIM."""
        self._ask(_TRIM, offset, length)

    def flush(self) -> None:
        """FLUSH."""
        self._ask(_FLUSH, 0, 0)

    def close(self) -> None:
        """Say goodbye; a server that is gone already does not mind."""
        try:
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        finally:
            self._file.close()
            self._socket.close()
