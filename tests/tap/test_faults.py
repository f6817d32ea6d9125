"""Faults below the tap: the guest hears exactly of its own, and the copy is never wrong for it."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.model import WRITE, replay
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.crowd import Crowd
from tests.tap.daemon import MEMORY, Attached, Stream, Tap, folder_in
from tests.tap.follow import Follower

SIZE = 1 << 20


def fail(stream: Follower, op: str, error: str | None, **options: object) -> None:
    """Arm a failpoint of disk d."""
    wanted = {"after": 0, "count": 1, "delay_ms": 0, "short": 0, **options}
    stream.stream.call("failpoint", disk="d", op=op, error=error, **wanted)


@pytest.fixture(params=["memory", "storage"])
def attached(request: pytest.FixtureRequest, tap: Tap, make_disk: MakeDisk) -> Attached:
    return tap.attach(make_disk(SIZE, folder=request.getfixturevalue(request.param)))


@pytest.mark.invariant("I1", "I3")
def test_a6_a_refused_write_is_never_treated_as_committed(
    tap: Tap, attached: Attached, follow: OpenStream
) -> None:
    """The guest gets the error, the record does not exist, and the range is read again."""
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.write(0, b"a" * 4096)
    follower.take()
    good = follower.seq
    fail(follower, "write", "EIO")
    assert client.call(nbd.WRITE, 0, data=b"b" * 4096).error == nbd.EIO
    state = follower.stream.state()
    assert (state["state"], state["cause"]) == ("dirty", "disk_error")
    assert state["head"] == good
    with pytest.raises(Exception, match=r"dirty|recording"):
        follower.stream.call("mark", body={"checkpoint": "0" * 32})
    client.write(8192, b"c" * 512)  # marks only
    assert follower.stream.state()["head"] == good
    follower.sync()
    kinds = [one.op for one in follower.taken if one.seq > good]
    assert kinds[0] == 16
    assert kinds[-1] == 17
    assert not any(one.op == WRITE and one.event.data[:1] == b"b" for one in follower.taken)
    begin = next(one for one in follower.taken if one.seq == good + 1).event
    assert (begin.body or {})["cause"] == "disk_error"
    assert (begin.body or {})["last_good"] == begin.aux == good
    assert follower.image() == attached.path.read_bytes()
    assert tap.group()["state"] == "recording"


@pytest.mark.invariant("I1", "I3")
def test_a6_control_a_follower_that_trusts_the_request_differs(
    attached: Attached, follow: OpenStream
) -> None:
    """Were the refused write taken as done, the copy would not equal the disk."""
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    fail(follower, "write", "EIO")
    assert client.call(nbd.WRITE, 0, data=b"b" * 4096).error == nbd.EIO
    follower.sync()
    assert follower.image() == attached.path.read_bytes()
    trusting = b"b" * 4096 + follower.image()[4096:]
    assert trusting != attached.path.read_bytes()


@pytest.mark.invariant("I1")
@pytest.mark.parametrize(
    ("error", "number"), [("EIO", nbd.EIO), ("ENOSPC", nbd.ENOSPC), ("EROFS", 1), ("EPERM", 1)]
)
def test_errors_keep_their_name(
    attached: Attached, follow: OpenStream, error: str, number: int
) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    fail(follower, "write", error)
    assert client.call(nbd.WRITE, 0, data=b"b" * 512).error == number
    client.write(0, b"b" * 512)


@pytest.mark.invariant("I1")
@pytest.mark.parametrize("op", ["read", "trim", "zero"])
def test_other_requests_fail_alone(attached: Attached, follow: OpenStream, op: str) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.write(0, b"k" * 4096)
    fail(follower, op, "EIO")
    command = {"read": nbd.READ, "trim": nbd.TRIM, "zero": nbd.ZERO}[op]
    assert client.call(command, 0, 4096).error == nbd.EIO
    assert client.read(0, 4096) == b"k" * 4096
    expected = "recording" if op == "read" else "dirty"
    assert follower.stream.state()["state"] == expected
    follower.sync()
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I1")
def test_a_short_write_is_finished(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    data = random.Random(3).randbytes(64 << 10)
    fail(follower, "write", None, short=4096)
    client.write(0, data)
    assert client.read(0, len(data)) == data
    assert follower.stream.state()["state"] == "recording"
    follower.take()
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I1")
def test_a_short_write_that_then_fails_is_refused(attached: Attached, follow: OpenStream) -> None:
    """Part of it is on the disk: the copy gets whatever is there, by reading it."""
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.write(0, b"o" * 8192)
    fail(follower, "write", "EIO", short=4096)
    reply = client.call(nbd.WRITE, 0, data=b"n" * 8192)
    follower.sync()
    assert follower.image() == attached.path.read_bytes()
    if reply.error == 0:
        assert attached.path.read_bytes()[:8192] == b"n" * 8192


@pytest.mark.invariant("I1", "I3")
def test_a_failed_flush_stays_failed(attached: Attached, follow: OpenStream) -> None:
    """The kernel may have dropped what it could not write: no later flush can be trusted, and what
    was written since the last good one is read again."""
    follower = follow(attached.stream_socket)
    client, other = (nbd.Nbd(attached.nbd_socket, "d") for _ in range(2))
    client.write(0, b"1" * 4096)
    client.flush()
    client.write(8192, b"2" * 4096)
    fail(follower, "flush", "EIO")
    assert client.call(nbd.FLUSH).error == nbd.EIO
    assert client.call(nbd.FLUSH).error == nbd.EIO
    assert other.call(nbd.FLUSH).error == nbd.EIO
    state = follower.stream.state()
    assert (state["state"], state["cause"]) == ("dirty", "disk_error")
    follower.sync()
    read_again = [(o.event.offset, o.event.length) for o in follower.taken if o.op in (6, 7)][-8:]
    assert any(at <= 8192 and at + length >= 8192 + 4096 for at, length in read_again)
    assert follower.image() == attached.path.read_bytes()
    flushes = sum(one.op == 4 for one in follower.taken)
    assert flushes == 1


@pytest.mark.invariant("I1")
def test_a_fua_write_that_cannot_be_made_durable_fails(
    attached: Attached, follow: OpenStream
) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    fail(follower, "write", "EIO")
    assert client.call(nbd.WRITE, 0, data=b"f" * 4096, flags=nbd.FUA).error == nbd.EIO
    follower.sync()
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I1", "I4")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_faults_at_random_under_load(attached: Attached, follow: OpenStream, seed: int) -> None:
    """Errors, short writes and delays while clients overlap: after the sync the copy is equal."""
    rng = random.Random(seed)
    follower = follow(attached.stream_socket)
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(3)]
    for _ in range(6):
        op = rng.choice(["write", "trim", "zero", "read"])
        error = rng.choice(["EIO", "ENOSPC", None])
        short = 512 if error is None and op == "write" else 0
        delay = rng.choice([0, 0, 5])
        fail(follower, op, error, after=rng.randrange(10), count=3, short=short, delay_ms=delay)
        for client in clients:
            for _ in range(12):
                command = rng.choice([nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.ZERO, nbd.READ])
                first = rng.randrange(0, 32)
                data = rng.randbytes(2048) if command == nbd.WRITE else b""
                client.submit(command, 512 * first, 2048, data)
        for client in clients:
            while client.pending:
                client.receive()
        for op in ("write", "trim", "zero", "read"):
            fail(follower, op, None, count=0)
        follower.sync()
        assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I1", "I4")
def test_slow_writes_keep_their_order(attached: Attached, follow: OpenStream) -> None:
    """A slow write holds back what overlaps it, and nothing else."""
    follower = follow(attached.stream_socket)
    slow, same, far = (nbd.Nbd(attached.nbd_socket, "d") for _ in range(3))
    fail(follower, "write", None, delay_ms=300)
    slow.submit(nbd.WRITE, 0, data=b"1" * 4096)
    time.sleep(0.05)
    same.submit(nbd.WRITE, 2048, data=b"2" * 4096)
    same.submit(nbd.READ, 0, 4096)
    begin = time.monotonic()
    far.write(64 << 10, b"3" * 512)
    assert time.monotonic() - begin < 0.2
    replies = {same.receive().cookie for _ in range(2)}
    assert len(replies) == 2
    assert slow.receive().error == 0
    follower.take()
    writes = [one.event for one in follower.taken if one.op == WRITE]
    assert [w.data[:1] for w in writes] == [b"3", b"1", b"2"]
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I1")
def test_what_cannot_be_read_is_named_in_end(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.write(0, b"r" * (64 << 10))
    follower.take()
    follower.stream.call("new_generation", cause="forced")
    follower.reopen(follower.stream)
    fail(follower, "read", "EIO", count=100_000)
    stream = type(follower.stream)(attached.stream_socket)
    follower.reopen(stream)
    follower.sync()
    fail(follower, "read", None, count=0)
    end = follower.taken[-1].event
    assert end.op == 17
    named = (end.body or {})["unreadable"]
    assert named
    assert sum(length for _, _, length in named) >= 64 << 10
    assert follower.stream.state()["state"] == "recording"


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A file system of 2 MiB."""
    with folder_in(MEMORY) as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", folder], check=True
        )
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
@pytest.mark.invariant("I1", "I3")
def test_a_full_file_system(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream, small_memory: Path
) -> None:
    """ENOSPC reaches the guest, and what was written up to there is copied."""
    disk = make_disk(8 << 20, folder=small_memory)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    errors = [client.call(nbd.WRITE, at << 18, data=b"s" * (1 << 18)).error for at in range(16)]
    assert errors[0] == 0
    assert errors[-1] == nbd.ENOSPC
    assert set(errors) == {0, nbd.ENOSPC}
    state = follower.stream.state()
    assert (state["state"], state["cause"]) == ("dirty", "disk_error")
    follower.sync()
    assert follower.image() == disk.read_bytes()
    client.trim(0, 1 << 20)
    client.write(4 << 20, b"t" * 4096)
    follower.sync()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I1", "I6")
def test_an_agent_that_stops_and_goes_on(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """The ring fills, the stream falls to dirty, guests notice nothing; then all is equal again."""
    disk = make_disk(4 << 20)
    attached = tap.attach(disk, ring_bytes=4 << 20)
    follower = follow(attached.stream_socket)
    crowd = Crowd(
        [nbd.Nbd(attached.nbd_socket, "d") for _ in range(2)], random.Random(4), SIZE, largest=128
    )
    worst = 0.0
    while follower.stream.state()["state"] == "recording":
        begin = time.monotonic()
        crowd.run(50)
        worst = max(worst, (time.monotonic() - begin) / 50)
    state = follower.stream.state()
    assert (state["state"], state["cause"]) == ("dirty", "ring_full")
    crowd.run(300)
    assert worst < 0.05
    follower.sync()
    assert follower.image() == disk.read_bytes()
    assert tap.group()["state"] == "recording"
    crowd.run(100)
    follower.take()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I1", "I3", "I4")
def test_writes_during_a_sync(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """A sync needs no lock against the guest: later writes win over blocks read before them."""
    disk = make_disk(4 << 20)
    disk.write_bytes(random.Random(5).randbytes(4 << 20))
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket, synced=False)
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(2)]
    crowd = Crowd(clients, random.Random(6), 4 << 20, largest=64)
    crowd.commands = (nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.ZERO)
    rounds = 0
    while True:
        crowd.run(10)
        answer = follower.stream.call("sync", bytes=64 << 10)
        follower.take()
        rounds += 1
        assert rounds < 2000
        if answer["state"] == "recording":
            break
    crowd.run(20)
    follower.take()
    assert follower.image() == disk.read_bytes()
    assert rounds > 10
    kinds = [one.op for one in follower.taken]
    assert kinds.count(16) == kinds.count(17) == 1
    assert kinds[0] == 16
    assert sum(one.event.aux < one.seq for one in follower.taken if one.op in (6, 7)) > 10


@pytest.mark.invariant("I3", "I4")
def test_a_sync_block_loses_to_what_was_recorded_after_its_read_began(
    start_tap: StartTap, make_disk: MakeDisk, storage: Path
) -> None:
    """Reads of the sync and writes of guests race past the page cache. With the negative control:
    ordered by arrival, some block that was read before a write would win over it."""
    tap = start_tap(engine="threads")
    disk = make_disk(SIZE, folder=storage)
    disk.write_bytes(bytes(SIZE))
    attached = tap.attach(disk, cache="none", ring_bytes=32 << 20)
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(2)]
    rng = random.Random(8)
    for _ in range(30):
        follower = _new_generation(attached)
        floods = [(client, _flood(client, rng)) for client in clients]
        asked = follower.stream.channel.send("sync", bytes=SIZE)
        for client, flood in floods:
            client.wire.send(flood)
        for client in clients:
            while client.pending:
                assert client.receive().error == 0
        follower.stream.channel.answer(asked)
        follower.sync()
        assert follower.image() == disk.read_bytes()
        by_arrival = [
            replace(one.event, aux=one.seq) if one.op in (6, 7) else one.event
            for one in follower.taken
        ]
        follower.stream.close()
        if replay(by_arrival).images()["d"] != disk.read_bytes():
            return
    raise AssertionError("no read ever raced a write: the test shows nothing")


def _new_generation(attached: Attached) -> Follower:
    """Everything is to be read again."""
    stream = Stream(attached.stream_socket)
    stream.call("new_generation", cause="forced")
    stream.close()
    return Follower(Stream(attached.stream_socket))


def _flood(client: nbd.Nbd, rng: random.Random) -> bytes:
    """Forty writes, to be sent at once."""
    places = [rng.randrange(0, SIZE, 4096) for _ in range(40)]
    sent = [client.prepare(nbd.WRITE, at, data=rng.randbytes(4096)) for at in places]
    return b"".join(packed for _, packed in sent)


@pytest.mark.invariant("I6")
def test_io_goes_on_while_the_agent_is_away(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    stop = threading.Event()
    slowest = [0.0]

    def write() -> None:
        with nbd.Nbd(attached.nbd_socket, "d") as client:
            turn = 0
            while not stop.is_set():
                begin = time.monotonic()
                client.write(turn % 100 * 512, turn.to_bytes(8, "little") * 64)
                slowest[0] = max(slowest[0], time.monotonic() - begin)
                turn += 1
                time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            time.sleep(0.1)
            follower.stream.close()
            time.sleep(0.1)
            follower.reopen(type(follower.stream)(attached.stream_socket))
            follower.take()
    finally:
        stop.set()
        thread.join()
    follower.take()
    if follower.stream.state()["state"] != "recording":
        follower.sync()
    assert follower.image() == attached.path.read_bytes()
    assert slowest[0] < 0.5  # a figure for a busy machine; the bench measures the real one


@pytest.mark.invariant("I1")
def test_the_io_of_another_group_does_not_wait(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    slow = tap.attach(make_disk(SIZE, "a.img"), group="a")
    fast = tap.attach(make_disk(SIZE, "b.img"), group="b")
    follower = follow(slow.stream_socket)
    fail(follower, "write", None, delay_ms=400)
    waiting, other = nbd.Nbd(slow.nbd_socket, "d"), nbd.Nbd(fast.nbd_socket, "d")
    waiting.submit(nbd.WRITE, 0, data=b"w" * 512)
    begin = time.monotonic()
    for turn in range(20):
        other.write(turn * 512, b"o" * 512)
    assert time.monotonic() - begin < 0.3
    assert waiting.receive().error == 0


def test_failpoints_are_for_taps_started_with_them(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    tap = start_tap(failpoints=False)
    assert tap.call("hello", version=1)["failpoints"] is False
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    with pytest.raises(Exception, match="failpoint"):
        fail(follower, "write", "EIO")
    assert attached.nbd_socket.exists()
