"""An agent that is let in and does wrong: its session ends by name, and nobody else notices."""

from __future__ import annotations

import json
import random
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from host_agent.wire import limits
from host_agent.wire.crc import crc32c
from host_agent.wire.message import (
    CommitNow,
    Probed,
    Stored,
    Welcome,
    pack,
    pack_frame_head,
    pack_head,
)
from host_agent.wire.seal import SealedFrame
from tests.ingest.conftest import Connect, MakeSource
from tests.ingest.reading import read_chain, read_segments
from tests.lanes import pick, tried
from tests.servers.agent import Agent, Closed, Source, make_hello
from tests.servers.ingest_process import IngestProcess
from workers.storage.port import ObjectStore


def _message(frame: SealedFrame) -> bytes:
    body = frame.header_bytes + frame.index + frame.payload
    return pack_frame_head(len(body)) + body


def _bent(frame: SealedFrame, **changes: object) -> bytes:
    """A frame whose header says something else, with a right checksum."""
    header = replace(frame.header, **changes)  # type: ignore[arg-type]
    return _message(replace(frame, header=header, header_bytes=header.pack()))


def _raw_header(frame: SealedFrame, at: int, form: str, value: int) -> bytes:
    """A frame with any value in its header, checksum made right."""
    head = bytearray(frame.header_bytes)
    struct.pack_into(form, head, at, value)
    head[252:256] = bytes(4)
    head[252:256] = crc32c(bytes(head)).to_bytes(4, "little")
    return _message(replace(frame, header_bytes=bytes(head)))


Bend = Callable[[Agent, SealedFrame], bytes]

BENT_FRAMES: dict[str, tuple[str, Bend]] = {
    "gap": ("sequence_gap", lambda a, f: _message(a.source.seal(a.source.sealer(), 3, 4))),
    "wrong generation": ("bad_frame", lambda a, f: _bent(f, generation=bytes(15) + b"x")),
    "counter skipped": ("bad_frame", lambda a, f: _bent(f, counter=7)),
    "salt changed": (
        "bad_frame",
        lambda a, f: (
            _message(f)
            + _message(a.source.seal(a.source.sealer(), f.header.last_seq + 1, a.source.head))
        ),
    ),
    "no begin": ("bad_frame", lambda a, f: _bent(f, flags=0)),
    "length too long": (
        "bad_frame",
        lambda a, f: pack_frame_head(len(_message(f))) + _message(f)[16:] + bytes(16),
    ),
    "length too short": ("bad_frame", lambda a, f: pack_frame_head(300) + _message(f)[16:]),
    "parts larger than the message": ("bad_frame", lambda a, f: _bent(f, payload_sealed=5000)),
    "huge part": ("limit", lambda a, f: _raw_header(f, 176, "<I", 0xFFFFFFFF)),
    "huge index": ("limit", lambda a, f: _raw_header(f, 168, "<I", 0xFFFFFFF0)),
    "huge message": ("limit", lambda a, f: pack_head(3, 0xFFFFFFF0)),
    "too many records": ("limit", lambda a, f: _raw_header(f, 12, "<I", 70_000)),
    "too many markers": ("protocol", lambda a, f: _raw_header(f, 192, "<H", 65)),
    "sequences do not fit": ("protocol", lambda a, f: _raw_header(f, 112, "<Q", 99)),
    "sequence overflow": ("protocol", lambda a, f: _raw_header(f, 104, "<Q", 2**64 - 1)),
    "unknown state": ("protocol", lambda a, f: _raw_header(f, 8, "<B", 9)),
    "reserved field": ("protocol", lambda a, f: _raw_header(f, 200, "<B", 1)),
    "newer version": ("protocol", lambda a, f: _raw_header(f, 4, "<B", 2)),
    "header checksum": (
        "protocol",
        lambda a, f: _message(replace(f, header_bytes=f.header_bytes[:-1] + b"x")),
    ),
    "times run back": ("protocol", lambda a, f: _raw_header(f, 120, "<Q", 2**63)),
    "not a frame": ("protocol", lambda a, f: pack_frame_head(400) + bytes(400)),
    "frame without a header": ("protocol", lambda a, f: pack_frame_head(10) + bytes(10)),
    "message of no known type": ("protocol", lambda a, f: pack_head(99, 0)),
    "head checksum": ("protocol", lambda a, f: pack_head(3, 300)[:12] + bytes(4)),
    "other protocol": ("protocol", lambda a, f: b"GET / HTTP/1.1\r\n\r\n"),
    "large json": ("limit", lambda a, f: pack_head(7, limits.MESSAGE_JSON_BYTES_MAX + 1)),
    "broken json": ("protocol", lambda a, f: pack_head(7, 5) + b"{{{{{"),
    "deep json": ("protocol", lambda a, f: pack_head(7, 60_000) + b"[" * 60_000),
    "text that is not utf-8": ("protocol", lambda a, f: pack_head(7, 4) + b'"\xff\xff"'),
    "empty message": ("protocol", lambda a, f: pack_head(7, 0)),
    "unknown field": ("protocol", lambda a, f: pack_head(10, 17) + b'{"seq":1,"x":"y"}'),
    "wrong type of a field": ("protocol", lambda a, f: pack_head(10, 11) + b'{"seq":"1"}'),
    "unknown tap state": (
        "protocol",
        lambda a, f: pack(Probed(1, a.source.generation.hex(), 1, 17)),
    ),
    "second hello": ("protocol", lambda a, f: pack(make_hello(a.source))),
    "ingest's own message": ("protocol", lambda a, f: pack(Stored(1, "00" * 16, 9, "00" * 32, 1))),
}


@pytest.mark.invariant("I10", "I12")
@pytest.mark.parametrize("bend", BENT_FRAMES)
def test_bent_message_ends_the_session_by_name(
    shared_ingest: IngestProcess, connect: Connect, make_source: MakeSource, bend: str
) -> None:
    """I10, I12: named, before memory is taken, and with nothing stored."""
    source = make_source(group=f"bent{list(BENT_FRAMES).index(bend)}")
    source.write(5)
    agent = connect(shared_ingest, source)
    agent.hello()
    code, make = BENT_FRAMES[bend]
    frame = source.seal(agent.sealer, 1, 2)
    with pytest.raises(Closed) as closed:
        agent.send(make(agent, frame))
        agent.read_until(lambda: False)
    close = closed.value.close
    assert close is not None
    assert close.code == code, close
    assert close.message
    assert agent.stored in (0, 2)
    again = connect(shared_ingest, source)
    assert again.hello().stored in (0, 2)
    again.send_frame()
    again.wait_stored()


def test_repeated_frame_is_recognised_and_skipped(
    shared_ingest: IngestProcess, connect: Connect, make_source: MakeSource, store: ObjectStore
) -> None:
    source = make_source(group="repeats")
    agent = connect(shared_ingest, source)
    agent.hello()
    for _ in range(3):
        source.write(4)
        agent.send_frame()
    agent.sent = 5
    agent.send_sealed(source.seal(agent.sealer, 6, 9))
    agent.send_sealed(source.seal(agent.sealer, 10, 13))
    agent.sent = 13
    source.write(4)
    agent.send_frame()
    agent.wait_stored()
    assert shared_ingest.stream("repeats")["frames_repeated"] == 2


def test_ignorable_messages_are_skipped(
    shared_ingest: IngestProcess, connect: Connect, make_source: MakeSource
) -> None:
    source = make_source(group="newer")
    agent = connect(shared_ingest, source)
    agent.send(pack_head(200, 5) + b"hello")
    agent.hello()
    agent.send(pack_head(200, 0) + pack_head(255, 65_536) + bytes(65_536))
    agent.send(pack(CommitNow(2**62)) + pack(Probed(10**9, source.generation.hex(), 5, 1)))
    agent.send_frame()
    agent.wait_stored()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"generation": "xyz"},
        {"generation": "00" * 16},
        {"group": "../../etc"},
        {"group": "asof"},
        {"predecessor": "1"},
        {"key": {}},
        {"key": {"holdfast": "data key"}},
        {"key": {"x": "y" * 30_000}},
    ],
    ids=str,
)
def test_wrong_hello_is_refused(
    shared_ingest: IngestProcess,
    connect: Connect,
    make_source: MakeSource,
    changes: dict[str, object],
) -> None:
    agent = connect(shared_ingest, make_source(group="hello"))
    with pytest.raises(Closed) as closed:
        agent.hello(**changes)
    assert closed.value.code in {"protocol", "limit"}
    assert closed.value.close is not None
    assert closed.value.close.message


@pytest.mark.invariant("I16")
def test_salt_of_an_earlier_connection_is_refused(
    shared_ingest: IngestProcess, connect: Connect, make_source: MakeSource
) -> None:
    """I16: a salt that comes back would use its keys and nonces twice."""
    source = make_source(group="salts")
    agent = connect(shared_ingest, source)
    agent.hello()
    salt = agent.send_frame().header.salt
    agent.wait_stored()
    agent.leave()
    again = connect(shared_ingest, source)
    again.sealer = source.sealer(salt)
    again.hello()
    source.write(1)
    again.send_frame()
    close = again.wait_close()
    assert close is not None
    assert close.code == "bad_frame"
    assert "salt" in close.message


def test_message_before_welcome_is_refused(
    shared_ingest: IngestProcess, connect: Connect, make_source: MakeSource
) -> None:
    for data in (
        pack(CommitNow(1)),
        pack(Welcome(1, 1, None, 0, "", 0, 1, 1, 1, "resume")),
        _message(make_source().seal(make_source().sealer(), 1, 1)),
    ):
        agent = connect(shared_ingest, make_source(group="early"))
        agent.send(data)
        close = agent.wait_close()
        assert close is not None
        assert close.code == "protocol"


class _Healthy(threading.Thread):
    """A tenant's ordinary stream, and how long its acknowledgements take."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent
        self.stop = threading.Event()
        self.waits: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.agent.source.write(5)
                began = time.monotonic()
                self.agent.send_frame()
                self.agent.wait_stored()
                self.waits.append(time.monotonic() - began)
                self.stop.wait(0.05)
        except Exception as error:  # noqa: BLE001 - told to the test
            self.error = error


def _malformed(rng: random.Random, agent: Agent, good: list[bytes]) -> bytes:
    """Anything: noise, flipped bits, cuts, bent fields."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 400))
    data = bytearray(rng.choice(good))
    if kind == 1:
        data[rng.randrange(min(len(data), 300))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del data[rng.randrange(1, len(data)) :]
    elif kind == 3:
        return pack_head(rng.randrange(128), rng.randrange(1 << 32)) + rng.randbytes(64)
    elif kind == 4:
        body = json.dumps({rng.choice("abc"): rng.randrange(1 << 70)}).encode()
        return pack_head(rng.choice([1, 7, 9, 10]), len(body)) + body
    else:
        at = rng.randrange(16, 200)
        data[at : at + 4] = rng.randbytes(4)
    return bytes(data)


#: Broken messages of every run of `make test`.
MALFORMED = pick(2_000, 10_000, 100_000)
_HEALTHY_STREAMS = 3


def _send_broken(ingest: IngestProcess, connect: Connect, bad: Source, rng: random.Random) -> None:
    """One broken message on a connection of its own."""
    good = [_message(bad.seal(bad.sealer(), 1, 3)), pack(make_hello(bad)), pack(CommitNow(1))]
    agent = connect(ingest, bad)
    try:
        if rng.random() < 0.04:
            agent.hello()
        agent.send(_malformed(rng, agent, good))
        agent.socket.unwrap() if rng.random() < 0.1 else agent.read_for(0.003)
    except (Closed, OSError):
        pass
    agent.leave()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.invariant("I9", "I12")
def test_malformed_messages_beside_healthy_streams(
    ingest: IngestProcess, connect: Connect, make_source: MakeSource, store: ObjectStore
) -> None:
    """I9, I12: thousands of broken messages change nothing for anybody else."""
    workers = []
    for number in range(_HEALTHY_STREAMS):
        healthy = connect(ingest, make_source(f"healthy{number}", f"host{number}", seed=number))
        healthy.hello()
        workers.append(_Healthy(healthy))
    for worker in workers:
        worker.start()
    rng = random.Random(20)
    bad = make_source(group="bad", seed=20)
    bad.write(5)
    sent = 0
    try:
        for _ in range(MALFORMED):
            _send_broken(ingest, connect, bad, rng)
            sent += 1
    finally:
        for worker in workers:
            worker.stop.set()
            worker.join()
    tried("malformed messages", sent)
    assert sent >= MALFORMED
    assert [worker.error for worker in workers] == [None] * _HEALTHY_STREAMS
    assert ingest.process.poll() is None
    status = ingest.status()
    assert (status["defects"], status["memory_held_bytes"]) == (0, 0)
    for worker in workers:
        waits = sorted(worker.waits)
        assert waits[len(waits) // 2] < 0.5
        assert waits[-1] < 3.0
        chain = read_chain(store, worker.agent.source)
        assert chain.seqs[-1] >= worker.agent.stored
    read_segments(store, bad)
