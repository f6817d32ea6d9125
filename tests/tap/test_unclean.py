"""Taps that are killed with changes in flight: their successors read exactly those again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.daemon import Attached, Stream, Tap
from tests.tap.follow import Follower

SIZE = 8 << 20
PAGE = 4096
TABLE_AT, TABLE_BYTES = 4096, 4096 * 16 + 4096
BEGIN, END, SYNC, SYNC_ZERO = 16, 17, 6, 7
IN_FLIGHT = {3 * PAGE: 4096, 100 * PAGE: 12_288, 1000 * PAGE: 65_536}


def _ring(tap: Tap) -> Path:
    return next(path for path in tap.ring_dir.iterdir() if path.suffix == ".ring")


def _delay(follower: Follower, op: str) -> None:
    follower.stream.call("failpoint", disk="d", op=op, delay_ms=60_000, error=None)


def _kill_in_flight(tap: Tap, attached: Attached, follower: Follower) -> None:
    """Kill the tap while three changes are in flight, all of which the disk still carries out."""
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(5 * PAGE, b"recorded" * 512)
        for op in ("write", "zero", "trim"):
            _delay(follower, op)
        requests = zip((nbd.WRITE, nbd.ZERO, nbd.WRITE), IN_FLIGHT.items(), strict=True)
        for command, (offset, length) in requests:
            if command == nbd.WRITE:
                client.submit(command, offset, data=b"w" * length)
            else:
                client.submit(command, offset, length=length)
        while tap.group()["in_flight"] < len(IN_FLIGHT):
            pass
        tap.kill()
    with attached.path.open("r+b") as file:
        for offset, length in IN_FLIGHT.items():
            file.seek(offset)
            file.write(b"w" * length)


@pytest.mark.invariant("I2", "I3", "I4")
@pytest.mark.parametrize("engine", ["threads", "io_uring"])
def test_exactly_what_was_in_flight_is_read_again(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream, engine: str
) -> None:
    """The generation goes on, and a sync interval of cause unclean_stop reads those ranges."""
    disk = make_disk(SIZE)
    tap = start_tap(engine=engine)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    _kill_in_flight(tap, attached, follower)

    tap = start_tap(engine=engine)
    stream = Stream(attached.stream_socket)
    assert stream.opened["generation"] == follower.stream.opened["generation"]
    assert (stream.opened["state"], stream.opened["cause"]) == ("dirty", "unclean_stop")
    assert tap.group()["to_read_bytes"] == sum(IN_FLIGHT.values())
    follower.reopen(stream)
    before = len(follower.taken)
    follower.sync()
    fresh = [one.event for one in follower.taken[before:]]
    begin = next(event for event in fresh if event.op == BEGIN)
    assert begin.body is not None
    assert begin.body["cause"] == "unclean_stop"
    assert fresh[-1].op == END
    covered = {
        page
        for event in fresh
        if event.op in (SYNC, SYNC_ZERO)
        for page in range(event.offset // PAGE, -(-(event.offset + event.length) // PAGE))
    }
    expected = {
        page
        for offset, length in IN_FLIGHT.items()
        for page in range(offset // PAGE, (offset + length) // PAGE)
    }
    assert covered == expected
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I3")
def test_without_the_table_the_difference_would_stay(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """The control: what is not in the table is not read, and the images differ."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    _kill_in_flight(tap, attached, follower)
    with _ring(tap).open("r+b") as file:
        file.seek(TABLE_AT)
        file.write(bytes(TABLE_BYTES))

    start_tap()
    follower.reopen(Stream(attached.stream_socket))
    follower.sync()
    assert follower.image() != disk.read_bytes()


@pytest.mark.invariant("I3")
def test_more_in_flight_than_the_table_holds(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """Then all is read again."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    _delay(follower, "write")
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(5)]
    for turn in range(900):
        for number, client in enumerate(clients):
            client.submit(nbd.WRITE, (turn * len(clients) + number) * 512, data=bytes(512))
    while tap.group()["in_flight"] < 900 * len(clients):
        pass
    tap.kill()
    for client in clients:
        client.close()
    tap = start_tap()
    assert tap.group()["to_read_bytes"] == SIZE
    follower.reopen(Stream(attached.stream_socket))
    follower.sync()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I2", "I3")
def test_killed_while_dirty(start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """What was marked only in memory is unknown: all is read, in the same generation."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    last_good = follower.seq
    follower.stream.call("failpoint", disk="d", op="write", error="EIO", count=1)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        with pytest.raises(OSError, match="EIO"):
            client.write(0, bytes(512))
        client.write(PAGE, b"marked only." + bytes(500))
    assert tap.group()["state"] == "dirty"
    tap.kill()
    tap = start_tap()
    assert tap.group()["last_good"] >= last_good
    assert tap.group()["to_read_bytes"] == SIZE
    follower.reopen(Stream(attached.stream_socket))
    follower.sync()
    assert follower.image() == disk.read_bytes()


def test_stored_may_lie_behind_what_is_given_back(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """A spool gives ring space back before the journal has it."""
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    assert tap.group()["stored"] == follower.seq
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, bytes(512))
        client.write(0, bytes(512))
    head = follower.stream.state()["head"]
    follower.stream.call("free", seq=head, stored=head - 1)
    assert (tap.group()["freed"], tap.group()["stored"]) == (head, head - 1)
    follower.stream.call("free", seq=head, stored=head)
    assert tap.group()["stored"] == head
    with pytest.raises(Exception, match="not recorded"):
        follower.stream.call("free", seq=head, stored=head + 1)
