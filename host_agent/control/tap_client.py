"""The tap's control sockets: requests and answers over SOCK_SEQPACKET, descriptors included."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from host_agent.control.errors import TapNotRunning
from host_agent.stream.errors import NotAttached, TapGone
from host_agent.stream.ledger import Freed
from host_agent.stream.ports import Look, RingOpened, SyncStep, TapState, ToRead
from host_agent.wire import limits, tapctl
from host_agent.wire.errors import WireError
from host_agent.wire.record import State

Fields = tapctl.Fields

#: An answer to anything but `wait` takes at most this long, or the tap counts as gone.
ANSWER_SECONDS = 10.0
#: A `sync` reads from disks, which may be slow or busy with their guests.
_SYNC_SECONDS = 120.0
_CONNECT_SECONDS = 2.0
_STATES = {state.name.lower(): state for state in State}


class TapChannel:
    """One control connection. Requests may overlap; each gets its own answer."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._socket = sock
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[tuple[Fields, int | None]]] = {}
        self._number = 0
        self._closed: TapGone | None = None
        self._sending = asyncio.Lock()
        self.was_ended_by_tap = False
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def call(self, verb: str, *, seconds: float = ANSWER_SECONDS, **fields: object) -> Fields:
        """One request and its answer; TapRefused, TapGone or WireError."""
        answer, descriptor = await self._call(verb, seconds, fields)
        if descriptor is not None:
            os.close(descriptor)
        return answer

    async def call_for_descriptor(self, verb: str, **fields: object) -> tuple[Fields, int]:
        """A request whose answer carries a descriptor, which is then the caller's."""
        answer, descriptor = await self._call(verb, ANSWER_SECONDS, fields)
        if descriptor is None:
            raise WireError(f"The tap answered {verb} without a descriptor.")
        return answer, descriptor

    async def _call(
        self, verb: str, seconds: float, fields: dict[str, object]
    ) -> tuple[Fields, int | None]:
        if self._closed is not None:
            raise self._closed
        self._number += 1
        number = self._number
        future: asyncio.Future[tuple[Fields, int | None]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(seconds):
                await self._send(tapctl.request(number, verb, **fields))
                answer, descriptor = await future
        except TimeoutError:
            raise TapGone(
                f"The tap did not answer {verb} within {seconds:g} s.", retryable=True
            ) from None
        finally:
            self._waiting.pop(number, None)
        try:
            return tapctl.answer(answer), descriptor
        except tapctl.TapRefused:
            if descriptor is not None:
                os.close(descriptor)
            raise

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self._loop.sock_sendall(self._socket, data)
            except OSError as error:
                self._end(f"The tap's socket {self._path} broke: {error.strerror}.", by_tap=True)
                raise TapGone(f"The tap at {self._path} went away.", retryable=True) from None

    def _on_readable(self) -> None:
        while self._closed is None:
            try:
                data, descriptors = _receive(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(f"The tap's socket {self._path} broke: {error.strerror}.", by_tap=True)
                return
            if not data:
                self._end(f"The tap ended the connection at {self._path}.", by_tap=True)
                return
            self._dispatch(data, descriptors)

    def _dispatch(self, data: bytes, descriptors: list[int]) -> None:
        try:
            message = tapctl.decode(data)
        except WireError as error:
            _close_all(descriptors)
            self._end(error.message, by_tap=False)
            return
        number = message.get("id")
        future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is None or future.done():
            _close_all(descriptors)
            return
        _close_all(descriptors[1:])
        future.set_result((message, descriptors[0] if descriptors else None))

    def _end(self, message: str, *, by_tap: bool) -> None:
        if self._closed is not None:
            return
        self._closed = TapGone(message, hint="Check that holdfast-tap runs.", retryable=True)
        self.was_ended_by_tap = by_tap
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._closed)
                # Nobody may be waiting for it any more.
                future.exception()
        self._waiting.clear()

    async def close(self) -> None:
        """End the connection. Idempotent."""
        self._end("The connection to the tap was closed.", by_tap=False)


async def connect(path: Path) -> TapChannel:
    """Connect to a control socket of the tap; TapNotRunning."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
    while True:
        try:
            sock.connect(str(path))
            return TapChannel(sock, path)
        except BlockingIOError:
            # The tap's queue of connections is full for a moment.
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        except OSError:
            break
    sock.close()
    raise TapNotRunning(
        f"No tap answers at {path}.",
        hint="Start holdfast-tap, or set autostart = true in the section [tap].",
        retryable=True,
    )


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i").itemsize
    data, ancillary, flags, _ = sock.recvmsg(
        limits.TAP_MESSAGE_BYTES_MAX + 1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) // size * size])
    if flags & socket.MSG_CTRUNC:
        _close_all(descriptors.tolist())
        raise OSError(0, "more descriptors than expected")
    return data, descriptors.tolist()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class TapStream:
    """The verbs of one group's stream, typed. The stream's port to the tap."""

    def __init__(self, channel: TapChannel) -> None:
        self.channel = channel

    async def open(self) -> RingOpened:
        """Take the ring over; whoever had it open loses it."""
        answer, descriptor = await self.channel.call_for_descriptor("open")
        try:
            predecessor = answer.get("predecessor")
            return RingOpened(
                descriptor=descriptor,
                generation=_generation(answer["generation"]),
                predecessor=_generation(predecessor) if predecessor else None,
                head=int(answer["head"]),
                freed=int(answer["freed"]),
                payload_head=int(answer["payload_head"]),
                payload_freed=int(answer["payload_freed"]),
                anchor=int(answer["anchor"]),
                anchor_hash=_hex(answer["anchor_hash"], 32),
                state=_state(answer["state"]),
                cause=answer.get("cause"),
            )
        except (KeyError, TypeError, ValueError) as error:
            os.close(descriptor)
            raise _malformed("open", error) from None
        except WireError:
            os.close(descriptor)
            raise

    async def wait(self, after: int, milliseconds: int) -> TapState:
        """The state, as soon as the head is beyond `after` or it changed, else after the time."""
        seconds = ANSWER_SECONDS + milliseconds / 1000
        answer = await self.channel.call("wait", seconds=seconds, after=after, ms=milliseconds)
        return _tap_state("wait", answer)

    async def state(self) -> TapState:
        """The state now."""
        return _tap_state("state", await self.channel.call("state"))

    async def free(self, seq: int, anchor: int, anchor_hash: bytes) -> None:
        """Give back everything up to `seq`."""
        await self.channel.call("free", seq=seq, anchor=anchor, anchor_hash=anchor_hash.hex())

    async def free_spooled(self, freed: Freed, stored: int) -> None:
        """Give ring space back that is spooled; marks stay for what is not stored."""
        await self.channel.call(
            "free",
            seq=freed.seq,
            anchor=freed.anchor,
            anchor_hash=freed.anchor_hash.hex(),
            stored=stored,
        )

    async def sync(self, limit: int) -> SyncStep:
        """Have up to `limit` bytes of disks read into the ring."""
        answer = await self.channel.call("sync", seconds=_SYNC_SECONDS, bytes=limit)
        return _sync_step(answer)

    async def sync_before(self, limit: int, before: tuple[int, int]) -> SyncStep:
        """The same, of what lies before a byte of a disk (by number)."""
        answer = await self.channel.call("sync", seconds=_SYNC_SECONDS, bytes=limit, before=before)
        return _sync_step(answer)

    async def force(self, disk: str | None) -> SyncStep:
        """Begin a sync interval in which everything is to be read, of one disk or of all."""
        fields: dict[str, object] = {"bytes": 0, "cause": "forced"}
        if disk is not None:
            fields["disk"] = disk
        return _sync_step(await self.channel.call("sync", seconds=_SYNC_SECONDS, **fields))

    async def to_read(self, disk: str, start: int) -> ToRead:
        """What is to be read of a disk from a byte on."""
        answer = await self.channel.call("to_read", disk=disk, **{"from": start})
        try:
            ranges = [(int(at), int(length)) for at, length in answer["ranges"]]
            following = answer["next"]
            return ToRead(
                int(answer["begin"]), ranges, None if following is None else int(following)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _malformed("to_read", error) from None

    async def look(self, disk: str) -> Look:
        """A descriptor of a disk that can only read; it is then the caller's."""
        answer, descriptor = await self.channel.call_for_descriptor("look", disk=disk)
        try:
            return Look(descriptor, int(answer["size"]))
        except (KeyError, TypeError, ValueError) as error:
            os.close(descriptor)
            raise _malformed("look", error) from None

    async def same(
        self, generation: bytes, begin: int, disk: str, ranges: list[tuple[int, int]]
    ) -> None:
        """Say that the journal has these ranges; TapRefused if that interval is over."""
        await self.channel.call(
            "same", generation=generation.hex(), begin=begin, disk=disk, ranges=ranges
        )

    async def mark(self, body: dict[str, object]) -> tuple[int, int]:
        """Put a marker into the stream: (sequence, time)."""
        answer = await self.channel.call("mark", body=body)
        try:
            return int(answer["seq"]), int(answer["time"])
        except (KeyError, TypeError, ValueError) as error:
            raise _malformed("mark", error) from None

    async def new_generation(self, cause: str) -> bytes:
        """Drop the ring's content and begin a new generation."""
        answer = await self.channel.call("new_generation", cause=cause)
        return _generation(answer.get("generation"))

    async def follow(self, cause: str, predecessor: bytes) -> bytes:
        """Begin a new generation that continues `predecessor`."""
        answer = await self.channel.call(
            "new_generation", cause=cause, predecessor=predecessor.hex()
        )
        return _generation(answer.get("generation"))

    async def close(self) -> None:
        """End the connection."""
        await self.channel.close()


def _sync_step(answer: Fields) -> SyncStep:
    try:
        return SyncStep(
            state=_state(answer["state"]),
            read=int(answer["read"]),
            remaining=int(answer["remaining"]),
            total=int(answer["total"]),
            busy=bool(answer.get("busy", False)),
            begin=int(answer.get("begin", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed("sync", error) from None


def _tap_state(verb: str, answer: Fields) -> TapState:
    try:
        return TapState(
            generation=_generation(answer["generation"]),
            head=int(answer["head"]),
            state=_state(answer["state"]),
            cause=answer.get("cause"),
            time=int(answer["time"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(verb, error) from None


def _state(value: Any) -> State:
    if isinstance(value, str) and value in _STATES:
        return _STATES[value]
    raise WireError(f"The tap stated an unknown state, {value!r:.40}.")


def _generation(value: Any) -> bytes:
    return _hex(value, 16)


def _hex(value: Any, length: int) -> bytes:
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError):
        data = b""
    if len(data) != length:
        raise WireError("The tap sent a name or a hash of the wrong form.")
    return data


def _malformed(verb: str, error: Exception) -> WireError:
    return WireError(f"The tap's answer to {verb} lacks something: {error}.")


def not_attached(group: str) -> NotAttached:
    """The error of a group without disks."""
    return NotAttached(
        f"No disk of group {group} is attached.",
        hint=f"Attach one: holdfast-agent attach {group} NAME --disk PATH",
        retryable=True,
    )
