"""Hot extents: marked durably before the first write, given up when stored, read after a host died.

A host's death is a tap that is killed, a ring that is gone, and a disk that lost what was written
since its last flush: each such block, or not, at random.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, StartTap
from tests.tap.daemon import Attached, Fields, Stream, Tap
from tests.tap.follow import Follower

MIB = 1 << 20
EXTENT = 4 * MIB
PAGE = 4096
SIZE = 160 * MIB
BEGIN, SYNC, SYNC_ZERO, DISK = 16, 6, 7, 20


def hot(tap: Tap) -> Fields:
    found: Fields = tap.group()["disks"][0]["hot"]
    return found


def until(follower: Follower, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Give back what is recorded, as an agent keeps doing, until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        follower.take()
        time.sleep(0.01)


def log_of(tap: Tap) -> Path:
    return next(tap.state_dir.glob("*.hot"))


def marked(tap: Tap) -> tuple[int, set[int]]:
    """Scope and extents in a log, read from the description alone."""
    data = log_of(tap).read_bytes()
    page = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    newest = max(page[:2], key=lambda one: struct.unpack_from("<Q", one, 32)[0])
    assert newest[:8] == b"HFHOT\0\0\x01"
    extents: set[int] = set()
    for which in range((len(page) - 2) // 2):
        copies = page[2 + 2 * which : 4 + 2 * which]
        copies = [one for one in copies if one[:4] == b"HFHP"]
        one = max(copies, key=lambda found: struct.unpack_from("<Q", found, 8)[0])
        extents.update(extent - 1 for extent in struct.unpack_from("<1008I", one, 64) if extent)
    return newest[48], extents


class Host:
    """A tap over one disk of a real file system, and what the disk held at its last flush."""

    def __init__(self, tap: Tap, attached: Attached, follower: Follower) -> None:
        self.tap, self.attached, self.follower = tap, attached, follower
        self.client = nbd.Nbd(attached.nbd_socket, "d")
        self.unflushed: dict[int, bytes] = {}

    def settle(self) -> None:
        """Wait until marks are enough."""
        until(self.follower, lambda: hot(self.tap)["state"] == "marked")

    def write(self, page: int, data: bytes) -> None:
        """A page, which a power cut may take back."""
        with self.attached.path.open("rb") as file:
            file.seek(page * PAGE)
            self.unflushed.setdefault(page, file.read(PAGE))
        self.client.write(page * PAGE, data)

    def flush(self) -> None:
        """All is durable."""
        self.client.flush()
        self.unflushed.clear()

    def cut_power(self, rng: random.Random) -> None:
        """The tap and the ring are gone, and any of what was not flushed."""
        self.tap.kill()
        self.client.close()
        for ring in self.tap.ring_dir.iterdir():
            ring.unlink()
        with self.attached.path.open("r+b") as file:
            for page, before in self.unflushed.items():
                if rng.random() < 0.5:
                    file.seek(page * PAGE)
                    file.write(before)

    def image(self) -> bytes:
        return self.attached.path.read_bytes()


StartHost = Callable[..., Host]


@pytest.fixture
def start_host(
    start_tap: StartTap, make_disk: MakeDisk, storage: Path, cleanup: ExitStack
) -> StartHost:
    def start(engine: str | None = None, size: int = SIZE) -> Host:
        tap = start_tap(engine=engine)
        attached = tap.attach(make_disk(size, folder=storage))
        stream = Stream(attached.stream_socket)
        cleanup.callback(stream.channel.close)
        follower = Follower(stream, replays=size <= SIZE)
        follower.sync()
        return Host(tap, attached, follower)

    return start


def _read_again(host: Host, start_tap: StartTap) -> list[int]:
    """Start again after a power cut and sync; which extents were read."""
    start_tap()
    stream = Stream(host.attached.stream_socket)
    assert stream.opened["generation"] != host.follower.stream.opened["generation"]
    assert stream.opened["predecessor"] == host.follower.stream.opened["generation"]
    assert (stream.opened["state"], stream.opened["cause"]) == ("dirty", "unclean_stop")
    host.follower.reopen(stream)
    before = len(host.follower.taken)
    host.follower.sync()
    events = [one.event for one in host.follower.taken[before:]]
    read: set[int] = set()
    for event in events:
        if event.op in (SYNC, SYNC_ZERO):
            last = event.offset + event.length - 1
            read.update(range(event.offset // EXTENT, last // EXTENT + 1))
    return sorted(read)


def _work(host: Host, rng: random.Random, count: int, *, takes: bool = True) -> set[int]:
    pages = set()
    for _ in range(count):
        page = rng.randrange(host.attached.size // PAGE)
        host.write(page, rng.randbytes(PAGE))
        pages.add(page)
        if takes and rng.random() < 0.1:
            host.follower.take()
        if rng.random() < 0.05:
            host.flush()
    return {page * PAGE // EXTENT for page in pages}


@pytest.mark.invariant("I2", "I3")
@pytest.mark.parametrize("engine", ["threads", "io_uring"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_host_that_lost_its_power(
    start_host: StartHost, start_tap: StartTap, engine: str, seed: int
) -> None:
    """Only marked extents are read, and then the journal has the disk byte for byte."""
    rng = random.Random(seed)
    host = start_host(engine)
    host.settle()
    touched = _work(host, rng, 40)
    scope, extents = marked(host.tap)
    assert scope == 1
    assert touched <= extents
    host.cut_power(rng)
    read = _read_again(host, start_tap)
    assert set(read) == extents
    assert len(read) < SIZE // EXTENT
    assert host.follower.image() == host.image()


@pytest.mark.invariant("I3")
def test_without_the_marks_the_difference_would_stay(
    start_host: StartHost, start_tap: StartTap
) -> None:
    """The control: the log of before the writes, and the images differ."""
    rng = random.Random(3)
    host = start_host()
    host.settle()
    empty = log_of(host.tap).read_bytes()
    _work(host, rng, 40, takes=False)
    host.cut_power(rng)
    log_of(host.tap).write_bytes(empty)
    assert _read_again(host, start_tap) == []
    assert host.follower.image() != host.image()


@pytest.mark.invariant("I2", "I3")
def test_power_cuts_again_and_again(start_host: StartHost, start_tap: StartTap) -> None:
    """Some before the sync is over or stored, some before marks are enough again."""
    rng = random.Random(4)
    host = start_host(size=64 * MIB)
    host.settle()
    for turn in range(6):
        _work(host, rng, 10)
        host.cut_power(rng)
        host.tap = start_tap()
        stream = Stream(host.attached.stream_socket)
        host.follower.reopen(stream)
        host.client = nbd.Nbd(host.attached.nbd_socket, "d")
        host.unflushed.clear()
        if turn % 2:
            # Read, but never stored.
            stream.call("sync", bytes=1 << 30)
            host.follower.take(free=False)
            _work(host, rng, 3, takes=False)
            host.cut_power(rng)
            host.tap = start_tap()
            host.follower.reopen(Stream(host.attached.stream_socket))
            host.client = nbd.Nbd(host.attached.nbd_socket, "d")
            host.unflushed.clear()
        host.follower.sync()
        assert host.follower.image() == host.image()


@pytest.mark.invariant("I3")
def test_before_the_first_image_is_stored_all_is_read(
    start_host: StartHost, start_tap: StartTap
) -> None:
    host = start_host()
    assert marked(host.tap)[0] == 2
    host.write(7, b"x" * PAGE)
    host.cut_power(random.Random(1))
    tap = start_tap()
    assert tap.group()["to_read_bytes"] == SIZE


def test_marks_are_given_up_when_stored_and_quiet(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before they are stored, although the ring's space was given back."""
    monkeypatch.setenv("HOLDFAST_QUIET_MS", "50")
    host = start_host()
    host.settle()
    until(host.follower, lambda: not marked(host.tap)[1])
    stored = host.follower.seq
    host.write(5 * EXTENT // PAGE, b"y" * PAGE)
    assert marked(host.tap)[1] == {5}
    host.follower.take(free=False)
    for _ in range(3):
        host.follower.stream.call("free", seq=host.follower.seq, stored=stored)
        time.sleep(0.5)
    assert marked(host.tap)[1] == {5}
    until(host.follower, lambda: not marked(host.tap)[1])
    assert hot(host.tap)["given_up"] >= 1
    host.write(5 * EXTENT // PAGE, b"z" * PAGE)
    assert marked(host.tap)[1] == {5}


def test_waits_are_counted_and_a_hot_extent_costs_none(start_host: StartHost) -> None:
    host = start_host()
    host.settle()
    before = hot(host.tap)
    for page in (0, 1, 2, 3):
        host.write(9 * EXTENT // PAGE + page, b"z" * PAGE)
    after = hot(host.tap)
    assert after["waits"] == before["waits"] + 1
    assert after["commits"] == before["commits"] + 1
    assert 0 < after["wait_us_max"] <= after["wait_us"]
    assert after["marked"] == before["marked"] + 1


def test_those_that_wait_share_a_flush(start_host: StartHost) -> None:
    host = start_host()
    host.settle()
    before = hot(host.tap)
    packed = [host.client.prepare(nbd.WRITE, at * EXTENT, data=bytes(512)) for at in range(40)]
    host.client.wire.send(b"".join(data for _, data in packed))
    for _ in packed:
        assert host.client.receive().error == 0
    after = hot(host.tap)
    assert after["marked"] == before["marked"] + 40
    assert after["commits"] <= before["commits"] + 5


@pytest.mark.invariant("I1", "I6")
def test_more_extents_than_there_are_marks(start_host: StartHost, start_tap: StartTap) -> None:
    """No guest waits for room: the log says that all is to be read."""
    host = start_host(size=40 << 30)
    host.settle()
    at = 0
    while hot(host.tap)["overflows"] == 0:
        for _ in range(256):
            host.client.submit(nbd.WRITE, at * EXTENT, data=bytes(512))
            at += 1
        while host.client.pending:
            assert host.client.receive().error == 0
        assert at <= 9000
    assert hot(host.tap)["state"] == "whole"
    assert marked(host.tap)[0] == 2
    host.tap.kill()
    for ring in host.tap.ring_dir.iterdir():
        ring.unlink()
    assert start_tap().group()["to_read_bytes"] == 40 << 30


@pytest.mark.invariant("I1", "I6", "I11")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_log_that_fails(start_host: StartHost, start_tap: StartTap, error: str) -> None:
    """The guest goes on; status and stream say it, and the next unclean start reads all."""
    host = start_host()
    host.settle()
    host.follower.stream.call("failpoint", disk="d", op="log", error=error, count=1)
    host.write(11 * EXTENT // PAGE, b"w" * PAGE)
    for extent in range(20, 30):
        host.write(extent * EXTENT // PAGE, b"w" * PAGE)
    said = hot(host.tap)
    assert (said["state"], said["errors"]) == ("untrusted", 1)
    assert said["reason"]
    fresh = host.follower.take()
    bodies = [one.event.body for one in fresh if one.op == DISK]
    assert bodies == [{"disk": 0, "name": "d", "size": SIZE, "trusted": False}]
    assert host.follower.image() == host.image()
    deadline = time.monotonic() + 10
    while list(host.tap.state_dir.glob("*.hot")):
        assert time.monotonic() < deadline
    host.cut_power(random.Random(5))
    tap = start_tap()
    assert tap.group()["to_read_bytes"] == SIZE
    assert hot(tap)["state"] == "whole"


def test_an_orderly_stop_of_the_host(start_host: StartHost, start_tap: StartTap) -> None:
    """The ring is gone, the stop was clean: only what was not stored is read, cause ring_lost."""
    host = start_host()
    host.settle()
    host.write(0, b"stored" + bytes(4090))
    host.follower.take()
    host.write(8 * EXTENT // PAGE, b"not stored" + bytes(4086))
    host.client.close()
    host.tap.stop()
    assert marked(host.tap) == (1, {8})
    for ring in host.tap.ring_dir.iterdir():
        ring.unlink()
    tap = start_tap()
    group = tap.group()
    assert (group["cause"], group["to_read_bytes"]) == ("ring_lost", EXTENT)
    host.follower.reopen(Stream(host.attached.stream_socket))
    host.follower.sync()
    assert host.follower.image() == host.image()


@pytest.mark.invariant("I2", "I3")
def test_a_killed_tap_that_was_dirty_reads_what_is_marked(
    start_host: StartHost, start_tap: StartTap
) -> None:
    host = start_host()
    host.settle()
    host.follower.stream.call("failpoint", disk="d", op="write", error="EIO", count=1)
    with pytest.raises(OSError, match="EIO"):
        host.client.write(0, bytes(512))
    host.write(30 * EXTENT // PAGE, b"marked only." + bytes(4084))
    assert host.tap.group()["state"] == "dirty"
    _, extents = marked(host.tap)
    host.tap.kill()
    host.client.close()
    tap = start_tap()
    assert tap.group()["generation"] == host.follower.stream.opened["generation"]
    assert tap.group()["to_read_bytes"] == len(extents) * EXTENT
    host.follower.reopen(Stream(host.attached.stream_socket))
    host.follower.sync()
    assert host.follower.image() == host.image()
