"""Stands between a machine and the tap, as a hypervisor's NBD client does, and notes every write.

It outlives the tap: what was not answered is kept and sent again, in order, once the export is
there again. What it notes is all that a judge of restored disks knows; nothing of Holdfast is
imported here. The log is three files that only grow, written before the act that they tell of:

- `hashes`: 8 bytes for each sector of 512 bytes that was written;
- `requests`: a write each, its number is its place: when it was issued (before it was sent on),
  its first sector, the place of its first hash, and how many sectors;
- `answers`: when the tap had answered which write, before the machine hears of it.

Times are the monotonic clock's nanoseconds. `errors` has a line for each refused request, `returns`
one for each time that the tap came back: how many requests were sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import struct
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

SECTOR = 512
REQUEST = struct.Struct("<qqqq")
ANSWER = struct.Struct("<qq")

_GREETING, _OPTION = 0x4E42444D41474943, 0x49484156454F5054
_OPTION_REPLY, _REQUEST, _SIMPLE_REPLY = 0x3E889045565A9, 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _IS_INFO, _UNSUPPORTED, _ERROR = 1, 3, (1 << 31) + 1, 1 << 31
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
#: Flags, flush, FUA and several connections, which all end in one to the tap; neither trim nor
#: zeroes, so that each write carries its bytes.
_FLAGS = 1 | 4 | 8 | 256
_RETRY_SECONDS = 0.05
_STREAM_BYTES = 4 << 20


def hashes_of(data: bytes | memoryview) -> bytes:
    """The 8-byte hashes of whole sectors, one after the other."""
    view = memoryview(data)
    return b"".join(
        blake2b(view[at : at + SECTOR], digest_size=8).digest()
        for at in range(0, len(view), SECTOR)
    )


class Log:
    """The three files; each call is in the kernel when it returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        names = ("hashes", "requests", "answers", "errors", "returns")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._hashes, self._requests, self._answers, self._errors, self._returns = (
            os.open(folder / name, flags, 0o644) for name in names
        )
        self._sectors = self._writes = 0

    def issued(self, offset: int, data: bytes) -> int:
        """A write begins; its number."""
        if offset % SECTOR or len(data) % SECTOR:
            raise ValueError(f"a write of {len(data)} bytes at {offset}: no whole sectors")
        os.write(self._hashes, hashes_of(data))
        count = len(data) // SECTOR
        now = time.monotonic_ns()
        os.write(self._requests, REQUEST.pack(now, offset // SECTOR, self._sectors, count))
        self._sectors += count
        self._writes += 1
        return self._writes - 1

    def answered(self, number: int) -> None:
        """A write was done."""
        os.write(self._answers, ANSWER.pack(number, time.monotonic_ns()))

    def refused(self, request: Request, error: int) -> None:
        """A request was answered with an error."""
        line = f"command {request.command} at {request.offset}: error {error}\n"
        os.write(self._errors, line.encode())

    def returned(self, pending: int) -> None:
        """The tap is there, and gets so many requests again."""
        os.write(self._returns, f"{pending}\n".encode())


@dataclass
class Request:
    """What the machine asked for and was not told about yet."""

    cookie: bytes
    flags: int
    command: int
    offset: int
    length: int
    data: bytes
    guest: asyncio.StreamWriter
    write: int = -1


class Witness:
    """One machine's connections, and the tap's as often as the tap comes back."""

    def __init__(self, tap: Path, export: bytes, log: Log) -> None:
        self._tap, self._export, self._log = tap, export, log
        self._to_tap: asyncio.StreamWriter | None = None
        self._pending: dict[int, Request] = {}
        self._next = 0
        self.size = 0
        self.is_connected = asyncio.Event()

    async def follow(self) -> None:
        """Keep a connection to the tap; never returns."""
        while True:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_unix_connection(self._tap, limit=_STREAM_BYTES)
                try:
                    self.size = await self._negotiate(reader, writer)
                    self._to_tap = writer
                    self._log.returned(len(self._pending))
                    for number in sorted(self._pending):
                        self._send(number)
                    self.is_connected.set()
                    await self._answers(reader)
                finally:
                    self._to_tap = None
                    writer.close()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        await reader.readexactly(18)
        body = struct.pack(">I", len(self._export)) + self._export + struct.pack(">H", 0)
        writer.write(struct.pack(">IQII", 3, _OPTION, _GO, len(body)) + body)
        size = 0
        while True:
            _, _, kind, length = struct.unpack(">QIII", await reader.readexactly(20))
            said = await reader.readexactly(length)
            if kind & _ERROR:
                raise EOFError("the export is not there yet")
            if kind == _IS_INFO and said[:2] == b"\0\0":
                size = int.from_bytes(said[2:10], "big")
            if kind == _ACK:
                return size

    def _send(self, number: int) -> None:
        if self._to_tap is None:
            return  # sent with the others once it is back
        one = self._pending[number]
        head = (_REQUEST, one.flags, one.command, number, one.offset, one.length)
        self._to_tap.write(struct.pack(">IHHQQI", *head) + one.data)

    async def _answers(self, reader: asyncio.StreamReader) -> None:
        while True:
            magic, error, number = struct.unpack(">IIQ", await reader.readexactly(16))
            if magic != _SIMPLE_REPLY:
                raise EOFError("not a reply")
            one = self._pending[number]
            is_data = one.command == _READ and not error
            data = await reader.readexactly(one.length) if is_data else b""
            if error:
                self._log.refused(one, error)
            elif one.command == _WRITE:
                self._log.answered(one.write)
            del self._pending[number]
            if not one.guest.is_closing():
                head = struct.pack(">II", _SIMPLE_REPLY, error)
                one.guest.write(head + one.cookie + data)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One of the machine's connections, from the greeting to its end."""
        try:
            if await self._greet(reader, writer):
                await self._requests(reader, writer)
        except (OSError, EOFError):
            pass  # the machine is gone
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """The handshake; False where the machine only asked."""
        writer.write(struct.pack(">QQH", _GREETING, _OPTION, 3))
        await reader.readexactly(4)
        facts = struct.pack(">QH", self.size, _FLAGS)
        while True:
            _, option, length = struct.unpack(">QII", await reader.readexactly(16))
            await reader.readexactly(length)
            if option == _EXPORT_NAME:
                writer.write(facts)
                return True
            if option in (_GO, _INFO):
                info = struct.pack(">H", 0) + facts
                _reply(writer, option, _IS_INFO, info)
                _reply(writer, option, _ACK)
                if option == _GO:
                    return True
            elif option == _ABORT:
                _reply(writer, option, _ACK)
                return False
            else:
                _reply(writer, option, _UNSUPPORTED)

    async def _requests(self, reader: asyncio.StreamReader, guest: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(28)
            magic, flags, command = struct.unpack_from(">IHH", head)
            offset, length = struct.unpack_from(">QI", head, 16)
            if magic != _REQUEST or command not in (_READ, _WRITE, _DISCONNECT, _FLUSH):
                raise EOFError(f"not a request: command {command}")
            if command == _DISCONNECT:
                return
            data = await reader.readexactly(length) if command == _WRITE else b""
            one = Request(head[8:16], flags, command, offset, length, data, guest)
            if command == _WRITE:
                one.write = self._log.issued(offset, data)
            number, self._next = self._next, self._next + 1
            self._pending[number] = one
            self._send(number)


def _reply(writer: asyncio.StreamWriter, option: int, kind: int, body: bytes = b"") -> None:
    writer.write(struct.pack(">QIII", _OPTION_REPLY, option, kind, len(body)) + body)


async def _main(listen: Path, tap: Path, export: str, folder: Path) -> None:
    witness = Witness(tap, export.encode(), Log(folder))
    following = asyncio.create_task(witness.follow())
    await witness.is_connected.wait()
    await asyncio.start_unix_server(witness.serve, listen, limit=_STREAM_BYTES)
    await following


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=Path, required=True, help="the machine's socket")
    parser.add_argument("--tap", type=Path, required=True, help="the tap's socket")
    parser.add_argument("--export", required=True)
    parser.add_argument("--log", type=Path, required=True, help="folder of the log")
    given = parser.parse_args()
    asyncio.run(_main(given.listen, given.tap, given.export, given.log))
