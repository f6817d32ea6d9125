"""Messages and sockets between the processes of one data node, over a socket pair.

A message is JSON in pieces that fit a datagram; descriptors travel with its last piece. Both ends
are ours: what does not fit the form is a defect and ends the channel.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

_PIECE_BYTES = 32 * 1024
_MESSAGE_BYTES_MAX = 2 * 1024 * 1024
_DESCRIPTORS_MAX = 2
_LAST, _MORE = b".", b"+"
_INT = array.array("i").itemsize

Message = dict[str, Any]


class ChannelClosed(Exception):
    """The other process has gone, or did not keep to the form."""


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _pieces(message: Message) -> list[bytes]:
    data = json.dumps(message, separators=(",", ":")).encode()
    cuts = range(0, len(data), _PIECE_BYTES)
    parts = [data[at : at + _PIECE_BYTES] for at in cuts]
    return [*(_MORE + part for part in parts[:-1]), _LAST + parts[-1]]


class _Assembly:
    """Pieces and descriptors become messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, piece: bytes) -> Message | None:
        """The message if this piece was its last; ChannelClosed."""
        self._parts.append(piece[1:])
        self._length += len(piece)
        if piece[:1] == _MORE and self._length <= _MESSAGE_BYTES_MAX:
            return None
        data, self._parts, self._length = b"".join(self._parts), [], 0
        if piece[:1] != _LAST:
            raise ChannelClosed
        try:
            message = json.loads(data)
        except ValueError:
            raise ChannelClosed from None
        if not isinstance(message, dict):
            raise ChannelClosed
        return message


def receive(end: socket.socket) -> tuple[Message, list[int]]:
    """The next message, waiting for it; ChannelClosed. For a process without a loop."""
    assembly = _Assembly()
    while True:
        piece, descriptors = _receive_piece(end)
        message = assembly.add(piece)
        if message is not None:
            return message, descriptors


def _receive_piece(end: socket.socket) -> tuple[bytes, list[int]]:
    try:
        data, ancillary, flags, _ = end.recvmsg(
            _PIECE_BYTES + 1, socket.CMSG_SPACE(_DESCRIPTORS_MAX * _INT), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError:
        raise ChannelClosed from None
    descriptors = array.array("i")
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(body[: len(body) - len(body) % _INT])
    if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        raise ChannelClosed
    return data, list(descriptors)


class _Passed:
    """A descriptor that is no socket's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


class Channel:
    """One end on an event loop. `on_message` gets each message and owns its descriptors."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_closed = on_closed
        self._assembly = _Assembly()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[bytes, Sequence[socket.socket | _Passed]]] = []
        self._is_open = True
        end.setblocking(False)
        self._loop.add_reader(end, self._read)

    @property
    def waiting(self) -> int:
        """Pieces that the other end has not taken yet."""
        return len(self._waiting)

    def say_here(self) -> None:
        """Tell the other end which process this is, by its number and by a descriptor of it."""
        own = _Passed(os.pidfd_open(os.getpid()))
        self.send({"type": "here", "pid": os.getpid()}, own)

    def send(self, message: Message, *passed: socket.socket | _Passed) -> None:
        """Send; never waits. What is passed is closed here once it has left."""
        pieces = _pieces(message)
        was_idle = not self._waiting
        self._waiting += [(piece, ()) for piece in pieces[:-1]]
        self._waiting.append((pieces[-1], passed))
        if not self._is_open:
            self._drop()
        elif was_idle:
            self._write()

    def close(self) -> None:
        """Hang up."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
            self._end.close()
            self._drop()

    def _drop(self) -> None:
        for _, passed in self._waiting:
            for one in passed:
                one.close()
        self._waiting.clear()

    def _write(self) -> None:
        while self._waiting:
            piece, passed = self._waiting[0]
            try:
                socket.send_fds(self._end, [piece], [one.fileno() for one in passed])
            except BlockingIOError:
                self._loop.add_writer(self._end, self._write)
                return
            except OSError:
                self._lose()
                return
            del self._waiting[0]
            for one in passed:
                one.close()
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        try:
            piece, descriptors = _receive_piece(self._end)
            message = self._assembly.add(piece)
        except BlockingIOError:
            return
        except ChannelClosed:
            self._lose()
            return
        if message is not None:
            self._on_message(message, descriptors)

    def _lose(self) -> None:
        if self._is_open:
            self.close()
            self._on_closed()


def send(end: socket.socket, message: Message, *passed: socket.socket) -> None:
    """Send, waiting until it is taken; ChannelClosed. For a process without a loop."""
    *first, last = _pieces(message)
    try:
        for piece in first:
            end.send(piece)
        socket.send_fds(end, [last], [one.fileno() for one in passed])
    except OSError:
        raise ChannelClosed from None
    finally:
        for one in passed:
            one.close()
