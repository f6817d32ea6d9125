"""Disks that QEMU keeps: a client plays its mirror, and the test plays the agent."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.integration.nbd import NbdClient, NbdFault
from tests.tap.conftest import OpenStream, StartTap
from tests.tap.daemon import RING_BYTES, Channel, Stream, Tap
from tests.tap.follow import Follower

SIZE = 4 << 20
ROOM = 1 << 30


class Mirrored:
    """A mirrored disk of a tap: its export, the agent's look at it, and what the disk holds."""

    def __init__(self, tap: Tap, follow: OpenStream) -> None:
        with contextlib.closing(tap.control()) as control:
            answer = control.call(
                "attach", group="g", disk="vda", mode="mirror", size=SIZE, ring_bytes=RING_BYTES
            )
        self.uri, self.stream_socket = str(answer["uri"]), Path(answer["stream_socket"])
        self.follower: Follower = follow(self.stream_socket, False)
        self.guard = Channel(self.stream_socket)
        self.disk = bytearray(SIZE)
        self.clients: list[NbdClient] = []

    def act(self, act: str, **fields: object) -> dict[str, object]:
        return self.guard.call("mirror", disk="vda", act=act, **fields)

    def sync(self) -> str:
        """One sync request of an agent; the state after it."""
        answer = self.follower.stream.channel.call("sync", bytes=ROOM)
        self.follower.take()
        return str(answer["state"])

    def begin(self) -> NbdClient:
        """A job with sync=full begins: everything is written once."""
        self.sync()
        self.act("begin", size=SIZE)
        client = self.connect()
        client.zero(0, SIZE)
        return client

    def connect(self) -> NbdClient:
        self.clients.append(NbdClient(self.uri))
        return self.clients[-1]

    def close_clients(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    def hang_up(self) -> None:
        """All clients go, and the tap knows it."""
        self.close_clients()
        deadline = time.monotonic() + 10
        while self.act("look")["clients"]:
            assert time.monotonic() < deadline

    def confirm(self) -> None:
        self.act("confirm", round=self.act("look")["round"])

    def write(self, client: NbdClient, at: int, data: bytes) -> None:
        """A write of the machine: on its disk first, then mirrored."""
        self.disk[at : at + len(data)] = data
        client.write(at, data)

    def image(self) -> bytes:
        self.follower.take()
        return self.follower.image("vda")


MakeMirrored = Callable[[Tap], Mirrored]


@pytest.fixture
def make_mirrored(follow: OpenStream, cleanup: ExitStack) -> MakeMirrored:
    def make(tap: Tap) -> Mirrored:
        made = Mirrored(tap, follow)
        cleanup.callback(made.close_clients)
        return made

    return make


@pytest.fixture
def mirrored(tap: Tap, make_mirrored: MakeMirrored) -> Mirrored:
    return make_mirrored(tap)


@pytest.mark.invariant("I4")
def test_an_interval_ends_with_a_confirmation_and_not_before(mirrored: Mirrored) -> None:
    client = mirrored.begin()
    rng = random.Random(1)
    for _ in range(20):
        mirrored.write(client, rng.randrange(SIZE // 512 - 8) * 512, rng.randbytes(4096))
    assert mirrored.sync() == "syncing"
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    mirrored.write(client, 512, b"x" * 512)
    assert mirrored.image() == bytes(mirrored.disk)


def test_the_control_a_confirmation_before_all_is_there_shows(mirrored: Mirrored) -> None:
    """An agent that confirms without asking QEMU makes a wrong moment: the check sees it."""
    mirrored.begin()
    mirrored.disk[8192:8704] = b"y" * 512
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    assert mirrored.image() != bytes(mirrored.disk)


def test_nothing_is_stored_and_nothing_is_a_hole(mirrored: Mirrored) -> None:
    client = mirrored.begin()
    mirrored.write(client, 0, b"x" * 512)
    with pytest.raises(NbdFault) as caught:
        client.read(0, 512)
    assert caught.value.number == 1
    client.flush()
    client.trim(0, 512)
    client.close()
    told = mirrored.guard.call("state")
    assert told["state"] == "syncing"


@pytest.mark.parametrize("event", ["lost", "gone", "second", "guard", "time"])
def test_what_makes_the_mirror_uncertain_opens_an_interval(mirrored: Mirrored, event: str) -> None:
    client = mirrored.begin()
    before = mirrored.act("look")["round"]
    mirrored.act("confirm", round=before, for_ms=300 if event == "time" else 60_000)
    assert mirrored.sync() == "recording"
    stream = mirrored.follower.stream
    match event:
        case "lost":
            mirrored.act("lost")
        case "gone":
            client.close()
        case "second":
            mirrored.connect()
        case "guard":
            mirrored.guard.close()
    told = stream.channel.call("wait", after=ROOM, ms=5000)
    if told["state"] == "recording":
        told = stream.channel.call("wait", after=ROOM, ms=5000)
    assert (told["state"], told["cause"]) == ("syncing", "mirror_lost")
    if event == "guard":
        mirrored.guard = Channel(mirrored.stream_socket)
    with pytest.raises(TapRefused, match="not the one that was looked at"):
        mirrored.act("confirm", round=before)
    with pytest.raises(TapRefused):
        stream.channel.call("mark", body={"checkpoint": "00" * 16})
    if event in ("lost", "guard", "time"):
        mirrored.confirm()
        assert mirrored.sync() == "recording"


def test_a_full_ring_refuses_at_once_and_what_was_answered_is_in_it(mirrored: Mirrored) -> None:
    client = mirrored.begin()
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    data = b"z" * (256 << 10)
    with pytest.raises((EOFError, OSError)):
        for n in range(2 * RING_BYTES // len(data)):
            client.write(n % 8 * len(data), data)
            at = n % 8 * len(data)
            mirrored.disk[at : at + len(data)] = data
    told = mirrored.act("look")
    assert told["refused"]
    assert (told["state"], told["cause"], told["needs"]) == ("syncing", "ring_full", "rest")
    assert mirrored.image() == bytes(mirrored.disk)
    again = mirrored.connect()
    mirrored.write(again, 0, b"a" * 512)
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    assert mirrored.image() == bytes(mirrored.disk)


def test_a_new_generation_and_a_killed_tap_need_the_whole_disk(
    start_tap: StartTap, make_mirrored: MakeMirrored
) -> None:
    tap = start_tap("shared")
    mirrored = make_mirrored(tap)
    mirrored.begin()
    mirrored.confirm()
    mirrored.sync()
    mirrored.follower.stream.channel.call("new_generation", cause="forced")
    assert mirrored.act("look")["needs"] == "all"
    with pytest.raises(TapRefused):
        mirrored.confirm()
    with pytest.raises(TapRefused, match="still has a client"):
        mirrored.act("begin", size=SIZE)
    tap.kill()
    after = make_mirrored(start_tap("shared"))
    assert after.act("look")["needs"] == "all"


@pytest.mark.invariant("I1")
def test_a_tap_that_is_killed_while_all_is_confirmed_leaves_the_rest_to_qemu(
    start_tap: StartTap, make_mirrored: MakeMirrored
) -> None:
    tap = start_tap("shared")
    mirrored = make_mirrored(tap)
    client = mirrored.begin()
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    mirrored.write(client, 4096, b"k" * 4096)
    tap.kill()
    start_tap("shared")
    mirrored.guard = Channel(mirrored.stream_socket)
    told = mirrored.act("look")
    assert (told["needs"], told["clients"]) == ("rest", 0)
    assert told["state"] != "recording"
    with pytest.raises(TapRefused):
        mirrored.confirm()
    mirrored.follower.reopen(Stream(mirrored.stream_socket))
    again = mirrored.connect()
    assert mirrored.sync() == "syncing"
    mirrored.write(again, 8192, b"l" * 4096)
    mirrored.confirm()
    assert mirrored.sync() == "recording"
    assert mirrored.image() == bytes(mirrored.disk)
    mirrored.follower.stream.close()


def test_an_orderly_stop_leaves_the_rest_to_qemu(
    start_tap: StartTap, make_mirrored: MakeMirrored
) -> None:
    tap = start_tap("shared")
    mirrored = make_mirrored(tap)
    mirrored.begin()
    mirrored.confirm()
    mirrored.sync()
    tap.stop()
    after = make_mirrored(start_tap("shared"))
    told = after.act("look")
    assert (told["needs"], told["clients"]) == ("rest", 0)
    assert told["state"] != "recording"


def test_a_size_may_change_between_two_mirrors(mirrored: Mirrored) -> None:
    mirrored.begin()
    mirrored.hang_up()
    mirrored.act("begin", size=2 * SIZE)
    client = mirrored.connect()
    assert client.size == 2 * SIZE
    client.write(SIZE, b"n" * 512)


@pytest.mark.parametrize("fields", [{"size": 0}, {"size": 513}, {}, {"size": 1 << 50}])
def test_a_mirror_needs_a_size(tap: Tap, fields: dict[str, int]) -> None:
    with contextlib.closing(tap.control()) as control, pytest.raises(TapRefused):
        control.call("attach", group="g", disk="vda", mode="mirror", **fields)


def test_a_disk_that_the_tap_keeps_has_no_mirror(tap: Tap, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    attached = tap.attach(path)
    stream = Stream(attached.stream_socket)
    with contextlib.closing(stream), pytest.raises(TapRefused, match="not mirrored"):
        stream.call("mirror", disk=attached.disk, act="look")
