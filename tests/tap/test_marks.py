"""What is marked to be read stays marked until what was read of it is in the ring."""

from __future__ import annotations

import random
import time

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.model.model import BEGIN, END, WRITE
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream
from tests.tap.daemon import Tap
from tests.tap.follow import Follower

SIZE = 16 << 20

pytestmark = pytest.mark.invariant("I3", "I4")


def _slow(follower: Follower, op: str, delay_ms: int) -> None:
    follower.stream.call(
        "failpoint", disk="d", op=op, error=None, after=0, count=0, delay_ms=delay_ms, short=0
    )


def test_a_read_of_an_interval_that_failed_is_done_again(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """The ring overflows while a sync's read is on its way: what it read is not used, not lost."""
    disk = make_disk(SIZE)
    rng = random.Random(3)
    with disk.open("r+b") as file:
        file.write(rng.randbytes(1 << 20))
    attached = tap.attach(disk, ring_bytes=4 << 20)
    follower = follow(attached.stream_socket, synced=False)
    _slow(follower, "read", 400)
    asked = follower.stream.channel.send("sync", bytes=256 << 10)
    time.sleep(0.1)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        for number in range(8):
            client.write((4 << 20) + (number << 20), rng.randbytes(1 << 20))
    follower.stream.channel.answer(asked)
    _slow(follower, "read", 0)
    follower.sync()
    assert sum(one.op == BEGIN for one in follower.taken) > 1
    assert follower.image() == disk.read_bytes()


def test_a_sync_ends_after_the_writes_that_its_reads_may_have_seen(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """END comes behind a write that was in flight during the last read."""
    disk = make_disk(1 << 20)
    disk.write_bytes(random.Random(4).randbytes(1 << 20))
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket, synced=False)
    _slow(follower, "write", 300)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.submit(nbd.WRITE, 4096, data=b"w" * 4096)
        time.sleep(0.05)
        follower.sync()
        assert client.receive().error == 0
    seqs = {one.op: one.seq for one in follower.taken if one.op in (WRITE, END)}
    assert seqs[WRITE] < seqs[END]
    assert follower.image() == disk.read_bytes()


@pytest.mark.parametrize("verb", ["mark", "hold"])
def test_no_marker_takes_a_place_inside_a_sync(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream, verb: str
) -> None:
    disk = make_disk(4 << 20)
    disk.write_bytes(random.Random(5).randbytes(4 << 20))
    follower = follow(tap.attach(disk).stream_socket, synced=False)
    follower.stream.call("sync", bytes=4096)
    assert follower.stream.state()["state"] == "syncing"
    asked: dict[str, object] = {"body": {"checkpoint": "c0" * 16, "kind": "crash", "tag": None}}
    if verb == "hold":
        asked |= {"checkpoint": "c0" * 16, "timeout_ms": 100}
    with pytest.raises(TapRefused, match="syncing"):
        follower.stream.call(verb, **asked)
    follower.sync()
    follower.stream.call(verb, **asked)
