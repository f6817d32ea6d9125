"""Taps that end, in order and otherwise, and what their successors know."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.crowd import Crowd
from tests.tap.daemon import Stream, Tap
from tests.tap.follow import Follower

SIZE = 1 << 20


def crowd_of(tap_socket: Path, seed: int) -> Crowd:
    clients = [nbd.Nbd(tap_socket, "d") for _ in range(2)]
    return Crowd(clients, random.Random(seed), SIZE)


@pytest.mark.invariant("I2", "I4")
def test_an_orderly_stop_keeps_the_generation(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """The successor serves what was attached, goes on in the ring, and reads nothing again."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    crowd_of(attached.nbd_socket, 1).run(200)
    follower.take(free=False)
    not_taken = crowd_of(attached.nbd_socket, 2)
    not_taken.run(50)
    tap.stop()

    start_tap()
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"after" + bytes(507))
    before = follower.stream.opened
    follower.reopen(Stream(attached.stream_socket))
    opened = follower.stream.opened
    assert opened["generation"] == before["generation"]
    assert opened["state"] == "recording"
    taken = follower.take()
    assert not any(one.op in (6, 7, 16) for one in taken)
    assert len(taken) > 20
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I2", "I3")
@pytest.mark.parametrize("engine", ["threads", "io_uring"])
@pytest.mark.parametrize("place", ["memory", "storage"])
def test_a_killed_tap(
    start_tap: StartTap,
    make_disk: MakeDisk,
    follow: OpenStream,
    request: pytest.FixtureRequest,
    engine: str,
    place: str,
) -> None:
    """With writes in flight: the successor cannot prove that it continues, and reads."""
    disk = make_disk(SIZE, folder=request.getfixturevalue(place))
    tap = start_tap(engine=engine)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    crowd = crowd_of(attached.nbd_socket, 3)
    crowd.run(100)
    follower.take()
    for client in crowd.clients:
        for turn in range(16):
            client.submit(nbd.WRITE, 4096 * turn, data=os.urandom(4096))
    tap.kill()

    tap = start_tap(engine=engine)
    again = tap.attach(disk)
    stream = Stream(again.stream_socket)
    assert stream.opened["state"] == "dirty"
    changed = stream.opened["generation"] != follower.stream.opened["generation"]
    if changed:
        assert stream.opened["predecessor"] == follower.stream.opened["generation"]
    follower.reopen(stream)
    with nbd.Nbd(again.nbd_socket, "d") as client:
        client.write(64 << 10, b"successor" + bytes(503))
    follower.sync()
    begin = [one.event.body or {} for one in follower.taken if one.op == 16][-1]
    assert begin["cause"] in ("unclean_stop", "ring_lost")
    assert follower.image() == disk.read_bytes()
    assert tap.group()["state"] == "recording"


@pytest.mark.invariant("I1", "I2", "I3")
def test_killed_again_and_again(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """Ten deaths at random moments, some inside a sync; nothing that was answered is ever lost."""
    rng = random.Random(17)
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    for _ in range(10):
        client = nbd.Nbd(attached.nbd_socket, "d")
        answered = {}
        for _ in range(rng.randrange(30)):
            place = rng.randrange(SIZE // 512)
            data = rng.randbytes(512)
            client.write(512 * place, data)
            answered[place] = data
        if rng.random() < 0.5:
            follower.take()
        if rng.random() < 0.3:
            follower.stream.call("sync", bytes=4096)
        tap.kill()
        content = disk.read_bytes()
        for place, data in answered.items():
            assert content[512 * place : 512 * place + 512] == data
        tap = start_tap()
        attached = tap.attach(disk)
        follower.reopen(Stream(attached.stream_socket))
        follower.sync()
        assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I3")
def test_a_disk_edited_while_nobody_looked(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"x" * 4096)
    follower.take()
    tap.stop()
    time.sleep(0.02)
    with disk.open("r+b") as file:
        file.seek(8192)
        file.write(b"offline")
    tap = start_tap()
    attached = tap.attach(disk)
    follower.reopen(Stream(attached.stream_socket))
    assert follower.stream.opened["state"] == "dirty"
    follower.sync()
    begin = [one.event.body or {} for one in follower.taken if one.op == 16][-1]
    assert begin["cause"] == "disk_changed"
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("has_ring", [True, False], ids=["ring", "no-ring"])
@pytest.mark.parametrize("at", [0, SIZE - 512])
def test_an_edit_that_keeps_size_and_time(
    start_tap: StartTap,
    make_disk: MakeDisk,
    follow: OpenStream,
    storage: Path,
    at: int,
    has_ring: bool,
) -> None:
    """Samples of the content tell, also after a restart of the host."""
    disk = make_disk(SIZE, folder=storage)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    follower.take()
    tap.stop()
    before = disk.stat()
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(b"offline" + bytes(505))
    os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns))
    if not has_ring:
        for ring in tap.ring_dir.iterdir():
            ring.unlink()
    tap = start_tap()
    assert tap.group()["to_read_bytes"] == SIZE
    assert tap.group()["cause"] == "disk_changed"
    follower.reopen(Stream(attached.stream_socket))
    follower.sync()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I3")
def test_a_ring_that_is_gone(start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """As after a restart of the host: a new generation that names its predecessor, all is read."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"x" * 4096)
    follower.take()
    tap.stop()
    rings = [
        path for path in tap.ring_dir.rglob("*") if path.is_file() and path.stat().st_size > SIZE
    ]
    assert rings
    for ring in rings:
        ring.unlink()
    tap = start_tap()
    attached = tap.attach(disk)
    stream = Stream(attached.stream_socket)
    assert stream.opened["generation"] != follower.stream.opened["generation"]
    assert stream.opened["predecessor"] == follower.stream.opened["generation"]
    assert stream.opened["state"] == "dirty"
    follower.reopen(stream)
    follower.sync()
    begin = follower.taken[-3:]
    assert begin
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I10")
def test_a_damaged_ring_is_not_continued(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    follower.take()
    tap.stop()
    ring = next(p for p in tap.ring_dir.rglob("*") if p.is_file() and p.stat().st_size > SIZE)
    with ring.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff")
    tap = start_tap()
    attached = tap.attach(disk)
    stream = Stream(attached.stream_socket)
    assert stream.opened["generation"] != follower.stream.opened["generation"]
    follower.reopen(stream)
    follower.sync()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I2")
def test_a_new_opener_replaces_the_old(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """And goes on from what was given back, with the hash of the anchor that the old one left."""
    disk = make_disk(SIZE)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    for turn in range(5000):
        client.submit(nbd.WRITE, 512 * (turn % 2000), data=bytes([turn % 251]) * 512)
        if turn % 50 == 49:
            while client.pending:
                client.receive()
            follower.take()
    old = follower.stream
    second = Stream(attached.stream_socket)
    with pytest.raises((ConnectionError, OSError)):
        old.call("state")
    assert second.opened["freed"] == follower.seq
    anchor, anchor_hash = follower.anchors[-1]
    assert anchor == 4096
    assert (second.opened["anchor"], second.opened["anchor_hash"]) == (anchor, anchor_hash.hex())
    follower.reopen(second)
    entries = follower.view.records(anchor + 1, follower.seq)  # kept although given back
    assert len(entries) == follower.seq - anchor
    client.write(0, b"z" * 512)
    follower.take()
    assert follower.image() == disk.read_bytes()


def test_waiting_for_records(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    head = follower.seq
    client = nbd.Nbd(attached.nbd_socket, "d")
    follower.stream.call("wait", after=head, ms=1)  # takes note of the state
    begin = time.monotonic()
    answer = follower.stream.call("wait", after=head, ms=100)
    assert 0.08 < time.monotonic() - begin < 1
    assert answer["head"] == head
    asked = follower.stream.channel.send("wait", after=head, ms=5000)
    begin = time.monotonic()
    client.write(0, b"w" * 512)
    answer, _ = follower.stream.channel.answer(asked)
    assert time.monotonic() - begin < 1
    assert answer["head"] == head + 1
    assert answer["generation"] == follower.stream.opened["generation"]
    begin = time.monotonic()
    assert follower.stream.call("wait", after=head, ms=5000)["head"] == head + 1
    assert time.monotonic() - begin < 1


def test_waiting_ends_when_the_state_changes(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    follower.stream.call("wait", after=follower.seq, ms=1)
    asked = follower.stream.channel.send("wait", after=follower.seq, ms=5000)
    follower.stream.channel.send(
        "failpoint", disk="d", op="write", error="EIO", after=0, count=1, delay_ms=0, short=0
    )
    client = nbd.Nbd(attached.nbd_socket, "d")
    begin = time.monotonic()
    client.call(nbd.WRITE, 0, data=b"w" * 512)
    answer, _ = follower.stream.channel.answer(asked)
    assert time.monotonic() - begin < 1
    assert (answer["state"], answer["cause"]) == ("dirty", "disk_error")


@pytest.mark.parametrize(
    "fields",
    [
        {"seq": 1 << 60, "anchor": 0, "anchor_hash": "00" * 32},
        {"seq": 1, "anchor": 1, "anchor_hash": "00" * 32},
        {"seq": 1, "anchor": 4096, "anchor_hash": "00" * 32},
        {"seq": 1, "anchor": 0, "anchor_hash": "00"},
        {"seq": -1, "anchor": 0, "anchor_hash": "00" * 32},
        {"seq": "1", "anchor": 0, "anchor_hash": "00" * 32},
    ],
    ids=range(6),
)
def test_giving_back_what_was_not_given(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream, fields: dict[str, object]
) -> None:
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    freed = tap.group()["freed"]
    with pytest.raises(Exception, match=r"\w"):
        follower.stream.call("free", **fields)
    assert tap.group()["freed"] == freed


@pytest.mark.invariant("I3")
def test_a_new_generation_on_demand(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """The ring's content is dropped, everything is read."""
    disk = make_disk(SIZE)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"g" * 4096)
        follower.take()
        answer = follower.stream.call("new_generation", cause="journal_differs")
        assert answer["generation"] != follower.stream.opened["generation"]
        client.write(8192, b"h" * 4096)
    before = follower.stream.opened["generation"]
    fresh = Follower(Stream(attached.stream_socket))
    assert fresh.stream.opened["predecessor"] == before
    assert fresh.stream.opened["head"] == 0
    fresh.sync()
    begin = fresh.taken[0].event.body or {}
    assert begin["cause"] == "journal_differs"
    assert begin["predecessor"] == before
    assert fresh.image() == disk.read_bytes()
    fresh.stream.close()


def test_a_paused_tap_goes_on(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    tap.pause()
    client.submit(nbd.WRITE, 0, data=b"p" * 512)
    assert not client.has_answer(0.2)
    tap.go_on()
    assert client.receive().error == 0
    follower.take()
    assert follower.image() == attached.path.read_bytes()


def test_what_a_tap_leaves_open_is_bounded(tap: Tap, make_disk: MakeDisk) -> None:
    """Connections that come and go leave no descriptors behind."""
    attached = tap.attach(make_disk(SIZE))
    folder = Path("/proc") / str(tap.pid) / "fd"
    for _ in range(3):
        nbd.Nbd(attached.nbd_socket, "d").disconnect()
    time.sleep(0.1)
    before = len(list(folder.iterdir()))
    for _ in range(60):
        nbd.Nbd(attached.nbd_socket, "d").close()
        nbd.Wire(attached.nbd_socket).close()
        Stream(attached.stream_socket).close()
        tap.call("status")
    time.sleep(0.2)
    assert len(list(folder.iterdir())) <= before + 2
