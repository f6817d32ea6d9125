"""From a connection's bytes to messages and frames, without I/O and without copying payloads.

The connection asks where the next bytes go (`buffer`) and says how many came (`filled`). Every
length is checked before memory is taken for what it announces: a head is 16 bytes in a fixed
buffer, a frame's clear header at most 2.8 KiB in a fixed buffer, and only a frame that the session
accepts gets a buffer for its sealed parts, exactly as large as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

import numpy as np

from host_agent.wire import limits
from host_agent.wire.errors import WireError
from host_agent.wire.frame import FIXED_BYTES, FrameHeader, header_length
from host_agent.wire.message import (
    HEAD_BYTES,
    Message,
    MessageType,
    parse_body,
    parse_head,
)
from workers.ingest.batch import ReceivedFrame

_FIRST_SKIPPED_TYPE = 128
_SCRATCH_BYTES = 64 * 1024


class Taking(Enum):
    """What the session wants done with the parts of a frame."""

    TAKE = "take"
    SKIP = "skip"
    WAIT = "wait"


class Events(Protocol):
    """Who is told. Each may raise HoldfastError, which ends the connection."""

    def on_message(self, message: Message) -> None:
        """A JSON message."""
        ...

    def on_frame_header(self, header: FrameHeader, length: int) -> Taking:
        """A frame of `length` bytes begins. After WAIT the parser rests until `take`."""
        ...

    def on_frame(self, frame: ReceivedFrame) -> None:
        """A frame that was taken is complete."""
        ...


class MessageParser:
    """The state of one direction of one connection."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._small = memoryview(bytearray(limits.MESSAGE_JSON_BYTES_MAX))
        self._at = 0
        self._into = self._small[:HEAD_BYTES]
        self._then: Callable[[memoryview], None] = self._on_head
        self._length = 0
        self._skip = 0
        self._header: FrameHeader | None = None
        self._header_bytes = b""

    @property
    def waiting(self) -> bool:
        """Whether a frame waits for `take`; no bytes may be given meanwhile."""
        return self._header is not None and not len(self._into)

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty unless `waiting`."""
        return self._into[self._at :]

    def filled(self, count: int) -> None:
        """So many bytes were written to the start of `buffer()`. Raises HoldfastError."""
        self._at += count
        if self._at == len(self._into):
            done, self._at = self._into, 0
            self._then(done)

    def take(self) -> None:
        """Go on with the frame that waited."""
        assert self._header is not None, "no frame waits"
        room: memoryview = np.empty(self._header.parts_length, np.uint8).data
        self._expect(room, self._on_parts)

    def _expect(self, into: memoryview, then: Callable[[memoryview], None]) -> None:
        self._into, self._then = into, then

    def _expect_head(self) -> None:
        self._header = None
        self._expect(self._small[:HEAD_BYTES], self._on_head)

    def _on_head(self, head: memoryview) -> None:
        number, length = parse_head(head)
        if number == MessageType.FRAME:
            if length < FIXED_BYTES:
                raise WireError(f"A frame of {length} bytes is too short for its header.")
            self._length = length
            self._expect(self._small[:FIXED_BYTES], self._on_fixed_header)
        elif number >= _FIRST_SKIPPED_TYPE and number != MessageType.FETCH:
            self._skip_next(length)
        elif length == 0:
            raise WireError(f"A message of type {number} is empty.")
        else:
            self._expect(self._small[:length], lambda body: self._on_body(number, body))

    def _on_body(self, number: int, body: memoryview) -> None:
        message = parse_body(number, body)
        self._expect_head()
        self._events.on_message(message)

    def _on_fixed_header(self, fixed: memoryview) -> None:
        length = header_length(fixed)
        if length > self._length:
            raise WireError("The frame's header is longer than its message.")
        if length == FIXED_BYTES:
            self._on_header(fixed)
        else:
            self._at = FIXED_BYTES
            self._expect(self._small[:length], self._on_header)

    def _on_header(self, data: memoryview) -> None:
        header = FrameHeader.unpack(data)
        self._header_bytes = bytes(data)
        self._header = header
        self._expect(self._small[:0], self._on_parts)
        taking = self._events.on_frame_header(header, self._length)
        if taking is Taking.TAKE:
            self.take()
        elif taking is Taking.SKIP:
            self._header = None
            self._skip_next(self._length - header.length)

    def _on_parts(self, parts: memoryview) -> None:
        assert self._header is not None
        frame = ReceivedFrame(self._header, self._header_bytes, parts)
        self._expect_head()
        self._events.on_frame(frame)

    def _skip_next(self, length: int) -> None:
        self._skip = length
        self._on_skipped(self._small[:0])

    def _on_skipped(self, done: memoryview) -> None:
        self._skip -= len(done)
        if self._skip:
            self._expect(self._small[: min(self._skip, _SCRATCH_BYTES)], self._on_skipped)
        else:
            self._expect_head()
