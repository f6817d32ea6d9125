"""An NBD client of our own: requests in flight at will, and malformed ones if wanted."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.tap.opened import track

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZERO, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
HAS_DATA = (READ, BLOCK_STATUS)
EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 5, 22, 28, 95, 108

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _SIMPLE, _CHUNK = 0x25609513, 0x67446698, 0x668E33EF
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED = 1, 2, 3, 6, 7, 8
OPT_LIST_META, OPT_SET_META = 9, 10
REP_ACK, REP_INFO, REP_META = 1, 3, 4
_SECONDS = 20.0


class ConnectionEnded(Exception):
    """The server closed the connection."""


class ProtocolBroken(Exception):
    """The server sent something that the protocol does not allow."""


@dataclass
class Reply:
    """What became of a request. `error` is NBD's number, 0 for success."""

    cookie: int
    error: int = 0
    data: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Pending:
    """A request without an answer yet."""

    command: int
    offset: int
    length: int
    buffer: bytearray = field(default_factory=bytearray)
    filled: int = 0
    extents: list[tuple[int, int]] = field(default_factory=list)
    error: int = 0


def pack_request(
    command: int, cookie: int, offset: int, length: int, *, flags: int = 0, magic: int = 0x25609513
) -> bytes:
    """The 28 bytes of a request."""
    return _REQUEST.pack(magic, flags, command, cookie, offset, length)


class Wire:
    """A connected socket with exact reads."""

    def __init__(self, path: str | Path) -> None:
        self.socket = track(socket.socket(socket.AF_UNIX))
        self.socket.settimeout(_SECONDS)
        self.socket.connect(str(path))

    def send(self, data: bytes) -> None:
        """All of it."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionEnded from error

    def take(self, length: int) -> bytes:
        """Exactly so many bytes."""
        out = bytearray()
        while len(out) < length:
            try:
                piece = self.socket.recv(min(length - len(out), 1 << 20))
            except ConnectionResetError as error:
                raise ConnectionEnded from error
            if not piece:
                raise ConnectionEnded
            out += piece
        return bytes(out)

    def close(self) -> None:
        """Without a word."""
        self.socket.close()


class Negotiation(Wire):
    """The handshake, option by option."""

    def __init__(self, path: str | Path, flags: int = 3) -> None:
        super().__init__(path)
        magic, option_magic, self.server_flags = _GREETING.unpack(self.take(18))
        if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise ProtocolBroken("no greeting")
        self.send(struct.pack(">I", flags))

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """The replies to an option, to the last one."""
        self.send(_OPTION.pack(b"IHAVEOPT", number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = _OPTION_REPLY.unpack(self.take(20))
            if magic != 0x3E889045565A9 or option != number:
                raise ProtocolBroken("no reply to the option")
            replies.append((kind, self.take(length)))
            if kind == REP_ACK or kind >> 31:
                return replies


def go_data(name: str, *infos: int) -> bytes:
    """What GO and INFO carry."""
    raw = name.encode()
    return struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_data(name: str, *queries: str) -> bytes:
    """What LIST_META_CONTEXT and SET_META_CONTEXT carry."""
    raw = name.encode()
    out = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries))
    return out + b"".join(struct.pack(">I", len(q)) + q.encode() for q in queries)


class Nbd:
    """A client in its transmission phase."""

    def __init__(self, path: str | Path, export: str, *, structured: bool = True) -> None:
        self.wire = Negotiation(path)
        self.structured = structured
        self.pending: dict[int, Pending] = {}
        self._next = 1
        if structured:
            self._expect_ack(OPT_STRUCTURED, b"")
            self._expect_ack(OPT_SET_META, meta_data(export, "base:allocation"))
        self.size, self.flags, self.block_bytes = 0, 0, (0, 0, 0)
        for kind, data in self._expect_ack(OPT_GO, go_data(export, 0, 3)):
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
            elif kind == REP_INFO and data[:2] == b"\0\3":
                self.block_bytes = struct.unpack(">III", data[2:])

    def __enter__(self) -> Nbd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _expect_ack(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        replies = self.wire.option(option, data)
        if replies[-1][0] != REP_ACK:
            raise ProtocolBroken(f"option {option}: {replies[-1]!r}")
        return replies

    def prepare(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> tuple[int, bytes]:
        """(cookie, bytes to send) of a request; several may be sent at once."""
        cookie, self._next = self._next, self._next + 1
        length = len(data) if command == WRITE else length
        self.pending[cookie] = Pending(command, offset, length)
        if command == READ:
            self.pending[cookie].buffer = bytearray(b"\xa5" * length)
        return cookie, pack_request(command, cookie, offset, length, flags=flags) + data

    def submit(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> int:
        """Send a request; its cookie."""
        cookie, packed = self.prepare(command, offset, length, data, flags)
        self.wire.send(packed)
        return cookie

    def receive(self) -> Reply:
        """The next complete answer, in whatever order the server gives them."""
        while True:
            (magic,) = struct.unpack(">I", self.wire.take(4))
            reply = self._simple() if magic == _SIMPLE else self._chunk(magic)
            if reply is not None:
                return reply

    def has_answer(self, seconds: float) -> bool:
        """Whether anything arrives within the time."""
        self.wire.socket.settimeout(seconds)
        try:
            return bool(self.wire.socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        finally:
            self.wire.socket.settimeout(_SECONDS)

    def _simple(self) -> Reply:
        error, cookie = struct.unpack(">IQ", self.wire.take(12))
        pending = self._known(cookie, done=True)
        if pending.command == READ and self.structured:
            raise ProtocolBroken("a read was answered without a chunk")
        data = self.wire.take(pending.length) if pending.command == READ and not error else b""
        return Reply(cookie, error, data)

    def _known(self, cookie: int, done: bool) -> Pending:
        found = self.pending.pop(cookie, None) if done else self.pending.get(cookie)
        if found is None:
            raise ProtocolBroken(f"an answer to nothing that was asked: {cookie}")
        return found

    def _chunk(self, magic: int) -> Reply | None:
        if magic != _CHUNK or not self.structured:
            raise ProtocolBroken(f"no reply: {magic:#x}")
        flags, kind, cookie, length = struct.unpack(">HHQI", self.wire.take(16))
        done = bool(flags & 1)
        body = self.wire.take(length)
        pending = self._known(cookie, done)
        if kind & 0x8000:
            pending.error = struct.unpack_from(">I", body)[0]
        elif kind == 1:
            (at,) = struct.unpack_from(">Q", body)
            self._fill(pending, at, body[8:])
        elif kind == 2:
            at, count = struct.unpack(">QI", body)
            self._fill(pending, at, bytes(count))
        elif kind == 5:
            pairs = struct.unpack(f">{(length - 4) // 4}I", body[4:])
            pending.extents += list(zip(pairs[::2], pairs[1::2], strict=True))
        elif kind != 0 or length:
            raise ProtocolBroken(f"chunk of the unknown kind {kind}")
        if not done:
            return None
        whole = pending.command != READ or pending.error or pending.filled == pending.length
        if not whole:
            raise ProtocolBroken(f"a read of {pending.length} bytes gave {pending.filled}")
        return Reply(cookie, pending.error, bytes(pending.buffer), pending.extents)

    def _fill(self, pending: Pending, at: int, data: bytes) -> None:
        start = at - pending.offset
        if pending.command != READ or start < 0 or start + len(data) > pending.length:
            raise ProtocolBroken("data outside of what was asked")
        pending.buffer[start : start + len(data)] = data
        pending.filled += len(data)

    def call(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0
    ) -> Reply:
        """One request and its answer, with nothing else in flight."""
        cookie = self.submit(command, offset, length, data, flags)
        reply = self.receive()
        if reply.cookie != cookie:
            raise ProtocolBroken("an answer to another request")
        return reply

    def _must(self, reply: Reply) -> Reply:
        if reply.error:
            raise OSError(reply.error, errno.errorcode.get(reply.error, "?"))
        return reply

    def read(self, offset: int, length: int) -> bytes:
        """OSError with NBD's number if it fails."""
        return self._must(self.call(READ, offset, length)).data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        """OSError with NBD's number if it fails."""
        self._must(self.call(WRITE, offset, data=data, flags=flags))

    def flush(self) -> None:
        """OSError with NBD's number if it fails."""
        self._must(self.call(FLUSH))

    def trim(self, offset: int, length: int, flags: int = 0) -> None:
        """OSError with NBD's number if it fails."""
        self._must(self.call(TRIM, offset, length, flags=flags))

    def zero(self, offset: int, length: int, flags: int = 0) -> None:
        """OSError with NBD's number if it fails."""
        self._must(self.call(ZERO, offset, length, flags=flags))

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """(length, flags) of what is there."""
        return self._must(self.call(BLOCK_STATUS, offset, length, flags=flags)).extents

    def disconnect(self) -> None:
        """As a client says farewell."""
        self.wire.send(pack_request(DISCONNECT, 0, 0, 0))
        self.wire.close()

    def close(self) -> None:
        """Without a farewell."""
        self.wire.close()
