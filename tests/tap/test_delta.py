"""Comparing instead of reading: what the tap tells, and when it believes what it is told."""

from __future__ import annotations

import os
import random

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.daemon import Attached, Fields, Stream
from tests.tap.follow import Follower

SIZE = 1 << 20
BLOCK = 64 << 10


class Renewed:
    """A disk with content that the model has, and a new generation in which all is to be read."""

    def __init__(self, start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream) -> None:
        self.disk = make_disk(SIZE)
        self.attached: Attached = start_tap().attach(self.disk)
        self.follower: Follower = follow(self.attached.stream_socket)
        with self.client() as client:
            rng = random.Random(4)
            for at in range(0, SIZE, BLOCK):
                client.write(at, rng.randbytes(BLOCK))
        self.follower.sync()
        self.follower.take()
        self.renew()

    def client(self) -> nbd.Nbd:
        return nbd.Nbd(self.attached.nbd_socket, "d")

    def renew(self) -> None:
        self.follower.stream.call("new_generation", cause="forced")
        self.follower.reopen(Stream(self.attached.stream_socket))
        self.begin: Fields = self.follower.stream.call("sync", bytes=0)

    def same(self, ranges: list[list[int]], begin: int | None = None) -> Fields:
        return self.follower.stream.call(
            "same",
            generation=self.follower.stream.opened["generation"],
            begin=self.begin["begin"] if begin is None else begin,
            disk="d",
            ranges=ranges,
        )


@pytest.fixture
def renewed(start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream) -> Renewed:
    return Renewed(start_tap, make_disk, follow)


@pytest.mark.invariant("I2")
def test_what_is_the_same_is_not_read(renewed: Renewed) -> None:
    """`to_read` names all, `same` drops marks, and what is left alone is read up to END."""
    stream = renewed.follower.stream
    assert (renewed.begin["state"], renewed.begin["read"]) == ("syncing", 0)
    assert stream.call("to_read", disk="d")["ranges"] == [[0, SIZE]]
    answer = renewed.same([[BLOCK, SIZE - 2 * BLOCK]])
    assert (answer["dropped"], answer["remaining"]) == (SIZE - 2 * BLOCK, 2 * BLOCK)
    renewed.follower.sync()
    assert renewed.follower.image() == renewed.disk.read_bytes()
    fresh = [one for one in renewed.follower.taken[-8:] if one.op in (6, 7)]
    assert sum(one.event.length for one in fresh) == 2 * BLOCK


@pytest.mark.invariant("I2")
def test_a_false_claim_is_a_difference(renewed: Renewed) -> None:
    """The control: what is called the same and is not stays wrong, and the comparison sees it."""
    with renewed.disk.open("r+b") as file:
        file.seek(3 * BLOCK)
        file.write(os.urandom(4096))
    renewed.same([[0, SIZE]])
    renewed.follower.sync()
    assert renewed.follower.image() != renewed.disk.read_bytes()


@pytest.mark.invariant("I2")
def test_a_comparison_of_another_interval_is_refused(renewed: Renewed) -> None:
    """A write that only marked, after the comparison: its claim must not take the mark away."""
    compared = renewed.begin["begin"]
    renewed.follower.sync()
    with pytest.raises(TapRefused, match="over"):
        renewed.same([[0, SIZE]], compared)
    # Another generation has a BEGIN at the same sequence.
    stream = renewed.follower.stream
    generation = stream.opened["generation"]
    renewed.renew()
    assert renewed.begin["begin"] == compared
    with pytest.raises(TapRefused) as refused:
        renewed.follower.stream.call(
            "same", generation=generation, begin=compared, disk="d", ranges=[[0, SIZE]]
        )
    assert refused.value.code == "stale_interval"
    renewed.follower.sync()
    assert renewed.follower.image() == renewed.disk.read_bytes()


@pytest.mark.invariant("I2", "I3")
def test_what_is_marked_in_the_interval_stays_marked(renewed: Renewed) -> None:
    """A write that the disk refused half way: a comparison from before it says nothing of it."""
    stream = renewed.follower.stream
    stream.call("failpoint", disk="d", op="write", error="EIO", after=0, count=1, short=4096)
    with renewed.client() as client, pytest.raises(OSError):
        client.write(2 * BLOCK, os.urandom(16384))
    answer = renewed.same([[0, SIZE]])
    assert 16384 <= answer["remaining"] <= BLOCK
    renewed.follower.sync()
    assert renewed.follower.image() == renewed.disk.read_bytes()


def test_a_sync_stops_before_a_place(renewed: Renewed) -> None:
    stream = renewed.follower.stream
    answer = stream.call("sync", bytes=SIZE, before=[0, 3 * BLOCK])
    assert (answer["read"], answer["state"]) == (3 * BLOCK, "syncing")
    assert stream.call("sync", bytes=SIZE, before=[0, 3 * BLOCK])["read"] == 0
    renewed.follower.sync()
    assert renewed.follower.image() == renewed.disk.read_bytes()


def test_a_look_can_only_read(renewed: Renewed) -> None:
    channel = renewed.follower.stream.channel
    answer, descriptor = channel.answer(channel.send("look", disk="d"))
    assert descriptor is not None
    try:
        assert answer["size"] == SIZE
        assert os.pread(descriptor, SIZE, 0) == renewed.disk.read_bytes()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_a_generation_may_follow_another_than_the_last(renewed: Renewed) -> None:
    stream = renewed.follower.stream
    with pytest.raises(TapRefused):
        stream.call("new_generation", cause="forced", predecessor="xyz")
    stream.call("new_generation", cause="forced", predecessor="ab" * 16)
    assert Stream(renewed.attached.stream_socket).opened["predecessor"] == "ab" * 16
