"""The ring holds what the disk holds, in the order in which it came to hold it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.model import WRITE, replay
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.crowd import SECTOR, Crowd, content
from tests.tap.daemon import Attached, Tap

ENGINES = ["threads", "io_uring"]
#: (folder fixture, cache): in memory, past the page cache, and through it.
CACHES = [("memory", "auto"), ("storage", "none"), ("storage", "writeback")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CACHES, ids=["memory", "direct", "buffered"])
def place(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """(folder, cache) of the disk."""
    folder, cache = request.param
    return request.getfixturevalue(folder), cache


def crowd_of(
    attached: Attached, clients: int, seed: int, *, depth: int = 8, largest: int = 16
) -> Crowd:
    connections = [nbd.Nbd(attached.nbd_socket, attached.disk) for _ in range(clients)]
    return Crowd(connections, random.Random(seed), attached.size, depth, largest)


@pytest.mark.invariant("I1", "I4")
@pytest.mark.parametrize("seed", [1, 2])
def test_overlapping_requests_of_many_clients(
    start_tap: StartTap,
    make_disk: MakeDisk,
    follow: OpenStream,
    engine: str,
    place: tuple[Path, str],
    seed: int,
) -> None:
    tap = start_tap(engine=engine)
    assert tap.call("hello", version=1)["engine"] == engine
    disk = make_disk(64 << 10, folder=place[0])
    attached = tap.attach(disk, cache=place[1])
    follower = follow(attached.stream_socket)
    follower.taken.clear()
    crowd = crowd_of(attached, 4, seed)
    for _ in range(4):
        crowd.run(300)
        follower.take()
        assert follower.image() == disk.read_bytes()
    crowd.check_records(follower.taken)
    assert crowd.check_reads(follower.taken) > 500
    assert sum(one.op == WRITE for one in follower.taken) > 400


@pytest.mark.invariant("I4")
def test_control_a_reordered_ring_is_noticed(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """Two overlapping records exchanged: the replay differs, and the order contradicts time."""
    disk = make_disk(64 << 10)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    follower.taken.clear()
    crowd = crowd_of(attached, 1, seed=3, depth=1)
    crowd.run(300)
    follower.take()
    crowd.check_records(follower.taken)
    taken = follower.taken
    at = next(at for at, one in enumerate(taken) if one.op == taken[at + 1].op == WRITE)
    first, second = taken[at], taken[at + 1]
    swapped = list(taken)
    swapped[at : at + 2] = [
        replace(first, event=second.event),
        replace(second, event=first.event),
    ]
    with pytest.raises(AssertionError, match="too late"):
        crowd.check_records(swapped)
    with pytest.raises(AssertionError):
        crowd.check_records([one for one in taken if one is not first])


@pytest.mark.invariant("I1")
def test_control_a_stale_read_is_noticed(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    attached = tap.attach(make_disk(64 << 10))
    follower = follow(attached.stream_socket)
    follower.taken.clear()
    crowd = crowd_of(attached, 1, seed=4, depth=1, largest=4)
    crowd.run(200)
    follower.take()
    crowd.check_reads(follower.taken)
    stale = next(
        act
        for act in crowd.acts
        if act.command == nbd.READ and any(act.seen[:SECTOR]) and act.length == SECTOR
    )
    stale.seen = bytes(SECTOR)
    with pytest.raises(AssertionError):
        crowd.check_reads(follower.taken)


@pytest.mark.invariant("I4")
def test_every_position_is_a_prefix(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """What is taken at any moment, however few records, is what the disk was at that position."""
    disk = make_disk(16 << 10)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    rng = random.Random(5)
    for number in range(1, 120):
        first = rng.randrange(24)
        client.write(first * SECTOR, content(number, first, rng.randint(1, 8)))
        follower.take()
        assert follower.image() == disk.read_bytes()
    again = replay([one.event for one in follower.taken])
    assert again.images()["d"] == disk.read_bytes()


@pytest.mark.parametrize("length", [512, 4096, 65_536, 1 << 20, (1 << 20) + 512, 3 << 20, 32 << 20])
def test_sizes(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream, storage: Path, length: int
) -> None:
    """Up to 1 MiB is one record; more is pieces that say so, with nothing between them."""
    tap = start_tap()
    for name, folder in (("m", None), ("s", storage)):
        disk = make_disk(33 << 20, f"{name}.img", folder)
        attached = tap.attach(disk, group=name, ring_bytes=64 << 20)
        follower = follow(attached.stream_socket)
        data = random.Random(length).randbytes(length)
        with nbd.Nbd(attached.nbd_socket, "d") as client:
            client.write(512, data)
            assert client.read(512, length) == data
        taken = follower.take()
        assert [one.op for one in taken] == [WRITE] * len(taken)
        assert len(taken) == -(-length // (1 << 20))
        assert b"".join(one.event.data for one in taken) == data
        assert taken[0].event.offset == 512
        inside = [2 | (4 if at else 0) for at in range(len(taken) - 1)]
        assert [one.event.flags for one in taken] == [*inside, 4 if inside else 0]
        assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I1")
def test_pieces_of_large_requests_stay_together(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    disk = make_disk(8 << 20)
    attached = tap.attach(disk, ring_bytes=64 << 20)
    follower = follow(attached.stream_socket)
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(3)]
    for turn in range(3):
        for number, client in enumerate(clients):
            client.submit(nbd.WRITE, turn << 20, data=bytes([16 * turn + number]) * (5 << 19))
        for client in clients:
            assert client.receive().error == 0
    taken = follower.take()  # check_records refuses pieces that are torn apart
    assert len(taken) == 3 * 3 * 3
    assert follower.image() == disk.read_bytes()


def test_two_disks_of_one_stream(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """One sequence over both; each record names its disk."""
    disks = [make_disk(64 << 10, f"{name}.img") for name in "ab"]
    first = tap.attach(disks[0], disk="a")
    second = tap.attach(disks[1], disk="b")
    assert first.stream_socket == second.stream_socket
    assert {first.number, second.number} == {0, 1}
    follower = follow(first.stream_socket)
    crowds = [crowd_of(one, 2, seed=7 + one.number) for one in (first, second)]
    for _ in range(10):
        for crowd in crowds:
            crowd.run(20)
    follower.take()
    for name, disk in zip("ab", disks, strict=True):
        assert follower.image(name) == disk.read_bytes()
    for crowd, one in zip(crowds, (first, second), strict=True):
        own = [t for t in follower.taken if t.event.disk == one.number and t.op in (WRITE, 2, 3, 4)]
        crowd.check_records(own)


def test_times_never_run_back(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    attached = tap.attach(make_disk(64 << 10))
    follower = follow(attached.stream_socket)
    crowd_of(attached, 2, seed=9).run(300)
    follower.take()
    times = [one.time for one in follower.taken]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60e9


@pytest.mark.invariant("I4")
def test_a_ring_that_goes_round_many_times(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """Laps, skipped ends of the payload area, anchors: all as the model of the ring expects."""
    disk = make_disk(2 << 20)
    attached = tap.attach(disk, ring_bytes=4 << 20)
    follower = follow(attached.stream_socket)
    crowd = crowd_of(attached, 2, seed=11, largest=700, depth=4)
    for _ in range(60):
        crowd.run(40)
        follower.take()
    small = crowd_of(attached, 2, seed=12, largest=1, depth=32)
    small.acts = crowd.acts
    small.step = crowd.step
    for _ in range(20):
        small.run(500)
        follower.take()
    header = follower.view.header
    assert follower.payload_end > 5 * header.payload_capacity
    assert follower.seq > header.index_capacity
    assert len(follower.anchors) > 2
    assert follower.image() == disk.read_bytes()
    assert tap.group()["state"] == "recording"
