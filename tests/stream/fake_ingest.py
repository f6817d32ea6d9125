"""An ingest in memory, with a journal that can be opened and replayed. Speaks real messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from host_agent.stream.errors import LinkLost
from host_agent.wire import message
from host_agent.wire.frame import FrameHeader, header_length
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import GroupKey, TenantKey, open_with_tenant
from host_agent.wire.message import (
    Close,
    CommitNow,
    Hello,
    Message,
    Probe,
    Probed,
    Received,
    Stored,
    Welcome,
)
from host_agent.wire.names import Identity
from host_agent.wire.record import Op, Records
from host_agent.wire.seal import FrameOpener

IDENTITY = Identity("acme", "shop", "hv-01")
TENANT_KEY = TenantKey.make("acme")
GROUP_KEY = GroupKey.make(TENANT_KEY, "shop")


@dataclass
class Generation:
    """What one generation stored: opened frames in order."""

    name: bytes
    key: bytes
    frames: list[tuple[FrameHeader, Records, bytes]] = field(default_factory=list)
    running: RecordHash = field(default_factory=RecordHash)
    state: int = 0

    @property
    def stored(self) -> int:
        return self.running.position


@dataclass
class FakeIngest:
    """One journal. Commits `commit_seconds` after a frame came; attributes are knobs for tests."""

    commit_seconds: float = 0.02
    window_bytes: int = 8 << 20
    generations: list[Generation] = field(default_factory=list)
    epoch: int = 0
    hellos: list[Hello] = field(default_factory=list)
    salts: list[bytes] = field(default_factory=list)
    counters: list[tuple[bytes, int]] = field(default_factory=list)
    commits_now: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    refuse: Close | None = None
    lie_about_hash: bool = False
    holds_back: bool = False
    silent_hello: bool = False
    links: list[FakeLink] = field(default_factory=list)
    down: bool = False

    @property
    def newest(self) -> Generation:
        return self.generations[-1]

    async def dial(self, address: int) -> FakeLink:
        if self.down:
            raise LinkLost("Nobody answers.", retryable=True)
        link = FakeLink(self)
        self.links.append(link)
        return link

    def welcome(self, hello: Hello) -> Welcome | Close:
        self.hellos.append(hello)
        if self.refuse is not None:
            return self.refuse
        name = bytes.fromhex(hello.generation)
        known = [generation.name for generation in self.generations]
        if name in known[:-1]:
            return Close("generation_ended", "Another generation followed.")
        self.epoch += 1
        for link in self.links[:-1]:
            link.say(Close("replaced", "A newer session."))
        begin = "resume"
        if name not in known:
            key = open_with_tenant(msgspec.json.encode(hello.key), TENANT_KEY, IDENTITY, name)
            self.generations.append(Generation(name, key))
            begin = "new_generation"
        newest = self.newest
        digest = newest.running.digest()
        return Welcome(
            version=1,
            epoch=self.epoch,
            generation=newest.name.hex(),
            stored=newest.stored,
            record_hash=(bytes(32) if self.lie_about_hash else digest).hex(),
            state=newest.state,
            place=1,
            window_bytes=self.window_bytes,
            frame_bytes_max=1 << 23,
            begin="resume" if begin == "resume" else "new_generation",
        )

    def records(self) -> list[tuple[bytes, Records, bytes]]:
        """(generation, records, payload) of every stored frame."""
        return [
            (generation.name, records, payload)
            for generation in self.generations
            for _, records, payload in generation.frames
        ]

    def image(self, size: int) -> bytes:
        """The newest generation's disk by the rule of FORMAT.md section 1: (order, seq) wins."""
        writes = []
        for _, records, payload in self.newest.frames:
            at = 0
            for record in records:
                length = int(record["payload_length"])
                body, at = payload[at : at + length], at + length
                op = Op(int(record["op"]))
                if op in (Op.WRITE, Op.SYNC, Op.SYNC_ZERO, Op.ZERO, Op.TRIM):
                    is_sync = op in (Op.SYNC, Op.SYNC_ZERO)
                    order = int(record["aux"]) if is_sync else int(record["seq"])
                    data = body if op in (Op.WRITE, Op.SYNC) else bytes(int(record["length"]))
                    writes.append((order, int(record["seq"]), int(record["offset"]), data))
        image = bytearray(size)
        for _, _, offset, data in sorted(writes, key=lambda w: w[:2]):
            image[offset : offset + len(data)] = data
        return bytes(image)


class FakeLink:
    """A connection to it; the stream's Link."""

    def __init__(self, ingest: FakeIngest) -> None:
        self.address = "fake:1"
        self._ingest = ingest
        self._out: asyncio.Queue[Message | None] = asyncio.Queue()
        self._opener: FrameOpener | None = None
        self._epoch = 0
        self._pending: list[tuple[FrameHeader, Records, bytes]] = []
        self._commit: asyncio.TimerHandle | None = None
        self._hurried = 0
        self.closed = False
        self.said: list[Message] = []
        self.probes = 0
        self.stall: asyncio.Event | None = None

    def say(self, message: Message | None) -> None:
        self._out.put_nowait(message)

    def cut(self) -> None:
        """The connection breaks; what was not committed is lost."""
        self.closed = True
        self._pending.clear()
        self.say(None)

    def probe(self) -> None:
        self.probes += 1
        self.say(Probe(self.probes))

    async def receive(self) -> Message:
        message = await self._out.get()
        if message is None:
            raise LinkLost("The connection broke.", retryable=True)
        return message

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._pending.clear()
            if self._commit is not None:
                self._commit.cancel()

    async def send(self, chunks: Sequence[bytes | memoryview]) -> None:
        if self.stall is not None:
            await self.stall.wait()
        if self.closed:
            raise LinkLost("The connection broke.", retryable=True)
        data = b"".join(chunks)
        self._ingest.arrivals.append((asyncio.get_running_loop().time(), len(data)))
        number, length = message.parse_head(data[:16])
        assert len(data) == 16 + length, "one message at a time"
        if number == message.MessageType.FRAME:
            self._frame(data[16:])
        else:
            self._hear(message.parse_body(number, data[16:]))
        await asyncio.sleep(0)

    def _hear(self, said: Message) -> None:
        self.said.append(said)
        if isinstance(said, Hello) and not self._ingest.silent_hello:
            answer = self._ingest.welcome(said)
            if isinstance(answer, Welcome):
                self._epoch = answer.epoch
                self._opener = FrameOpener(self._ingest.newest.key, IDENTITY)
            self.say(answer)
        elif isinstance(said, CommitNow):
            self._ingest.commits_now.append(said.seq)
            self._hurried = max(self._hurried, said.seq)
            self._commit_if_hurried()

    def _frame(self, data: bytes) -> None:
        assert self._opener is not None
        head = data[: header_length(data)]
        header = FrameHeader.unpack(head)
        index = data[len(head) : len(head) + header.index_sealed]
        payload = data[len(head) + header.index_sealed :]
        records = self._opener.open_index(header, head, index)
        plain = self._opener.open_payload(header, head, payload)
        self._ingest.counters.append((header.salt, header.counter))
        self._pending.append((header, records, plain))
        self.say(Received(header.last_seq))
        self._commit_if_hurried()
        if self._commit is None and not self._ingest.holds_back:
            loop = asyncio.get_running_loop()
            self._commit = loop.call_later(self._ingest.commit_seconds, self.commit)

    def _commit_if_hurried(self) -> None:
        if self._pending and self._pending[-1][0].last_seq >= self._hurried > 0:
            self._hurried = 0
            self.commit()

    def commit(self) -> None:
        """Store what is there, if this session still is the newest."""
        self._commit = None
        if self.closed or not self._pending or self._epoch != self._ingest.epoch:
            return
        newest = self._ingest.newest
        for header, records, plain in self._pending:
            assert header.generation == newest.name
            assert header.first_seq == newest.stored + 1, "gap or repetition"
            newest.running.update(records)
            assert newest.running.digest() == header.record_hash
            newest.frames.append((header, records, plain))
            newest.state = header.state
        self._pending.clear()
        digest = newest.running.digest().hex()
        self.say(Stored(self._epoch, newest.name.hex(), newest.stored, digest, 1))

    @property
    def probed(self) -> list[Probed]:
        return [said for said in self.said if isinstance(said, Probed)]
