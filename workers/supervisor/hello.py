"""The server name in the first bytes of a TLS connection. Pure: bytes in, a name out.

Of a ClientHello (RFC 8446, section 4.1.2; server names: RFC 6066, section 3) only what leads to the
name is looked at. The handshake itself is the business of the tenant's process.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A ClientHello with post-quantum keys has some 2 KiB; more than this is refused.
HELLO_BYTES_MAX = 8192

_RECORD_HEAD = 5
_HANDSHAKE_HEAD = 4
_HANDSHAKE_RECORD = 22
_TLS_MAJOR = 3
_RECORD_BYTES_MAX = 1 << 14
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_NAME_BYTES_MAX = 255
_VERSION_AND_RANDOM = 34


class NoHello(Exception):
    """These bytes do not begin a TLS connection that names one server."""


@dataclass(frozen=True)
class NeedsMore:
    """Nothing can be told before there are so many bytes in all."""

    total: int


def server_name_of(data: bytes) -> str | NeedsMore:
    """The server name of the ClientHello that `data` begins with; NoHello."""
    hello = _handshake(data)
    return hello if isinstance(hello, NeedsMore) else _name(_names(hello))


def _handshake(data: bytes) -> bytes | NeedsMore:
    """The body of the first handshake message, put together from its records."""
    message, at = b"", 0
    while at < len(data):
        length = _record_length(data[at : at + _RECORD_HEAD])
        if length is None:
            return _more(at + _RECORD_HEAD)
        start = at + _RECORD_HEAD
        part = data[start : start + length]
        message += part
        missing = _missing(message)
        if missing <= 0:
            return message[_HANDSHAKE_HEAD : len(message) + missing]
        if len(data) + missing > HELLO_BYTES_MAX:
            raise NoHello
        if len(part) < length:
            return _more(len(data) + min(missing, length - len(part)))
        at = start + length
    return _more(at + _RECORD_HEAD + 1)


def _record_length(head: bytes) -> int | None:
    """How many bytes follow a record's head; None while the head is not complete."""
    if head[0] != _HANDSHAKE_RECORD or head[1:2] not in (b"", bytes([_TLS_MAJOR])):
        raise NoHello
    if len(head) < _RECORD_HEAD:
        return None
    length = int.from_bytes(head[3:])
    if not 0 < length <= _RECORD_BYTES_MAX:
        raise NoHello
    return length


def _missing(message: bytes) -> int:
    """How many bytes of the ClientHello are missing; negative if there are more than its own."""
    if message[:1] not in (b"", bytes([_CLIENT_HELLO])):
        raise NoHello
    if len(message) < _HANDSHAKE_HEAD:
        return _HANDSHAKE_HEAD - len(message)
    return _HANDSHAKE_HEAD + int.from_bytes(message[1:_HANDSHAKE_HEAD]) - len(message)


def _more(total: int) -> NeedsMore:
    if total > HELLO_BYTES_MAX:
        raise NoHello
    return NeedsMore(total)


class _Reader:
    """Takes fields from the front; NoHello where they do not fit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._data)

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise NoHello
        field, self._at = self._data[self._at : end], end
        return field

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length))

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))


def _names(hello: bytes) -> bytes:
    """The body of the ClientHello's one list of server names."""
    reader = _Reader(hello)
    reader.take(_VERSION_AND_RANDOM)
    for length_bytes in (1, 2, 1):  # session id, cipher suites, compression methods
        reader.vector(length_bytes)
    extensions = _Reader(reader.vector(2))
    found = []
    while not extensions.is_done:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            found.append(body)
    if len(found) != 1 or not reader.is_done:
        raise NoHello
    return found[0]


def _name(names: bytes) -> str:
    outer = _Reader(names)
    entries = _Reader(outer.vector(2))
    kind, name = entries.number(1), entries.vector(2)
    if kind != _HOST_NAME or not (entries.is_done and outer.is_done):
        raise NoHello
    if not 0 < len(name) <= _NAME_BYTES_MAX or not name.isascii():
        raise NoHello
    return name.decode("ascii")
