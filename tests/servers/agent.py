"""A synthetic agent: a stream of real sealed frames, and one side of a real TLS session.

Blocking and single-threaded: messages are read while something is waited for, and probes answered
then. Everything it sends can be bent, so that a test can play an agent that does wrong.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from host_agent.wire.crc import crc32c
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.message import (
    ALPN,
    HEAD_BYTES,
    Close,
    CommitNow,
    Hello,
    Message,
    Probe,
    Probed,
    Received,
    Stored,
    Throttle,
    Welcome,
    pack,
    pack_frame_head,
    parse_body,
    parse_head,
)
from host_agent.wire.names import Identity
from host_agent.wire.record import NO_DISK, RECORD, Op, Records, State
from host_agent.wire.seal import FrameSealer, SealedFrame

_SECTOR = 512


class Closed(Exception):
    """Ingest ended the session. `close` None: without a word."""

    def __init__(self, close: Close | None) -> None:
        super().__init__(str(close))
        self.close = close

    @property
    def code(self) -> str | None:
        return None if self.close is None else self.close.code


@dataclass
class Source:
    """What a tap would have recorded: one generation of one stream, all of it kept."""

    identity: Identity
    tenant_key: TenantKey
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    predecessor: bytes | None = None
    start_ns: int = field(default_factory=time.time_ns)
    begin: bytes = b'{"cause":"first_start"}'

    def __post_init__(self) -> None:
        self.generation = self.rng.randbytes(16)
        self.group_key = GroupKey.make(self.tenant_key, self.identity.group)
        self.data_key, self.key_object = make_data_key(
            self.group_key, self.identity, self.generation
        )
        self.records: Records = np.empty(0, RECORD)
        self.payloads: list[bytes] = []
        self.hashes: list[bytes] = [bytes(32)]
        self._running = RecordHash()
        self._time = self.start_ns
        self._append(Op.BEGIN, self.begin, disk=NO_DISK)

    @property
    def head(self) -> int:
        return len(self.payloads)

    def write(self, count: int = 1, length: int = 4096, data: bytes | None = None) -> int:
        """Record writes; returns the head."""
        for _ in range(count):
            payload = self.rng.randbytes(length) if data is None else data
            offset = self.rng.randrange(1000) * _SECTOR
            self._append(Op.WRITE, payload, offset=offset, length=len(payload))
        return self.head

    def mark(self) -> int:
        """Record an orderly end of the initial sync."""
        return self._append(Op.END, b'{"bytes":0,"unreadable":[]}', disk=NO_DISK)

    def _append(
        self, op: Op, payload: bytes, *, offset: int = 0, length: int = 0, disk: int = 0
    ) -> int:
        self._time += 1000
        row = np.zeros(1, RECORD)
        row[0] = (
            self.head + 1, self._time, offset, 0, length,
            crc32c(payload) if payload else 0, len(payload), disk, op, 0,
        )  # fmt: skip
        self.records = np.concatenate([self.records, row])
        self.payloads.append(payload)
        self._running.update(row)
        self.hashes.append(self._running.digest())
        return self.head

    def next_generation(self) -> Source:
        """What follows when the ring is lost."""
        return Source(self.identity, self.tenant_key, self.rng, predecessor=self.generation)

    def seal(self, sealer: FrameSealer, first: int, last: int) -> SealedFrame:
        """Positions `first` to `last` as one frame."""
        return sealer.seal(
            self.records[first - 1 : last].copy(),
            b"".join(self.payloads[first - 1 : last]),
            state=State.RECORDING,
            record_hash=self.hashes[last],
        )

    def sealer(self, salt: bytes | None = None) -> FrameSealer:
        return FrameSealer(self.data_key, self.identity, self.generation, salt or os.urandom(32))


def client_context(ca: Path, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
    """A client's TLS context as the real agent has it."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def make_hello(source: Source) -> Hello:
    """The HELLO of an agent that has the whole source in its ring."""
    return Hello(
        version=1,
        software="synthetic",
        tenant=source.identity.tenant,
        group=source.identity.group,
        host=source.identity.host,
        generation=source.generation.hex(),
        predecessor=None if source.predecessor is None else source.predecessor.hex(),
        freed=0,
        head=source.head,
        key=msgspec.json.decode(source.key_object),
        commit_seconds=0.05,
    )


class Agent:
    """One connection."""

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext,
        source: Source,
        server_name: str = "localhost",
    ) -> None:
        self.source = source
        raw = socket.create_connection(address, timeout=60)
        self.socket = context.wrap_socket(raw, server_hostname=server_name)
        self.socket.settimeout(10)
        self.sealer = source.sealer()
        self.welcome: Welcome | None = None
        self.stored = 0
        self.stored_messages: list[Stored] = []
        self.received = 0
        self.sent = 0
        self.part: int | None = None
        self.state = State.RECORDING
        self.answers_probes = True
        self.probes = 0
        self._pending = b""

    # --- sending

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            self._read_close(error)

    def _read_close(self, error: OSError) -> None:
        """Ingest hung up while we wrote: what it said last is what matters."""
        try:
            while True:
                self.read_message()
        except (OSError, TimeoutError):
            raise Closed(None) from error

    def hello(self, **changes: object) -> Welcome:
        """Send HELLO, read WELCOME; what is sent next starts where it says."""
        self.send(pack(msgspec.structs.replace(make_hello(self.source), **changes)))
        message = self.read_message()
        assert isinstance(message, Welcome), message
        self.welcome = message
        self.stored = message.stored if message.begin == "resume" else 0
        self.sent = self.stored
        return message

    def send_frame(self, last: int | None = None, **changes: object) -> SealedFrame:
        """Seal and send what was not sent yet, up to `last`."""
        last = last or self.source.head
        frame = self.source.seal(self.sealer, self.sent + 1, last)
        if changes:
            header = replace(frame.header, **changes)  # type: ignore[arg-type]
            frame = replace(frame, header=header, header_bytes=header.pack())
        self.send_sealed(frame)
        self.sent = last
        return frame

    def send_sealed(self, frame: SealedFrame) -> None:
        body = frame.header_bytes + frame.index + frame.payload
        self.send(pack_frame_head(len(body)) + body)

    def commit_now(self, seq: int) -> None:
        self.send(pack(CommitNow(seq)))

    # --- receiving

    def read_message(self) -> Message:
        """The next message; probes are answered as well. Closed at the end of the session."""
        number, length = parse_head(self._read(HEAD_BYTES))
        message = parse_body(number, self._read(length))
        if isinstance(message, Close):
            raise Closed(message)
        if isinstance(message, Probe):
            self.probes += 1
            if self.answers_probes:
                self.answer(message.probe)
        elif isinstance(message, Stored):
            self.stored_messages.append(message)
            assert message.seq > self.stored
            assert message.record_hash == self.source.hashes[message.seq].hex()
            self.stored = message.seq
        elif isinstance(message, Received):
            self.received = message.seq
        elif isinstance(message, Throttle):
            self.part = message.bytes_per_second
        return message

    def answer(self, probe: int) -> None:
        head, generation = self.source.head, self.source.generation.hex()
        self.send(pack(Probed(probe, generation, head, int(self.state))))

    def _read(self, length: int) -> bytes:
        while len(self._pending) < length:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise Closed(None)
            self._pending += data
        data, self._pending = self._pending[:length], self._pending[length:]
        return data

    def wait_stored(self, seq: int | None = None, seconds: float = 10) -> None:
        """Read until `seq` (or all that was sent) is stored."""
        wanted = self.sent if seq is None else seq
        self.read_until(lambda: self.stored >= wanted, seconds)

    def read_until(self, is_so: Callable[[], bool], seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            self.read_message()

    def read_for(self, seconds: float) -> None:
        """Listen for a while."""
        with contextlib.suppress(TimeoutError):
            self.read_until(lambda: False, seconds)

    def wait_close(self, seconds: float = 10) -> Close | None:
        """Read to the end of the session; its CLOSE, or None if there was none."""
        try:
            self.read_until(lambda: False, seconds)
        except Closed as closed:
            return closed.close
        raise AssertionError("unreachable")

    def leave(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def connected(address: tuple[str, int], context: ssl.SSLContext, source: Source) -> Iterator[Agent]:
    """A connection that is closed at the end."""
    agent = Agent(address, context, source)
    try:
        yield agent
    finally:
        agent.leave()
