"""The tap dies at each of its failpoints in the middle of everything that it does. Its successor
serves every answered write, and what its records make of the disk equals the disk."""

from __future__ import annotations

import contextlib
import random
import signal
from pathlib import Path

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.content import difference
from tests.failpoints.registry import failpoints, swept_elsewhere
from tests.lanes import pick, tried
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, StartTap
from tests.tap.daemon import Stream, Tap
from tests.tap.follow import Follower

SIZE = 8 << 20
_RING_BYTES = 4 << 20
_ID = "c0ffee" + "0" * 26
_BODY = {"checkpoint": _ID, "kind": "crash", "tag": None, "scope": "group"}
#: Arrivals at a failpoint that are tried: the first, and later ones.
ARRIVALS = (1, 3, 7, 20, 50)[: pick(1, 2, 5)]
POINTS = sorted(failpoints()["tap"] - swept_elsewhere())
#: A panic of the client's own, and what a tap that dies leaves to its clients.
_ENDS = (nbd.ConnectionEnded, OSError, EOFError, TapRefused, AssertionError, ValueError)

pytestmark = pytest.mark.invariant("I1", "I2", "I3")


class Life:
    """All that happens to a tap, in order. `model` holds what was answered."""

    def __init__(self, tap: Tap, disk: Path) -> None:
        self.tap = tap
        self.disk = disk
        self.rng = random.Random(11)
        self.model = bytearray(SIZE)
        self.unsure: list[tuple[int, int]] = []
        self.follower: Follower | None = None

    def live(self) -> None:
        """Until the end or the failpoint."""
        attached = self.tap.attach(self.disk, ring_bytes=_RING_BYTES)
        self.socket, self.stream_socket = attached.nbd_socket, attached.stream_socket
        follower = self.follower = Follower(Stream(attached.stream_socket))
        follower.sync()
        self._requests()
        follower.take()
        self._hold(follower)
        self._faults(follower)
        self._overflow(follower)
        follower.stream.call("new_generation", cause="forced")
        follower.stream.channel.close()
        follower.reopen(Stream(attached.stream_socket))
        follower.sync()
        self._requests()
        self._failed_flush(follower)
        follower.sync()
        self.tap.stop()

    def _requests(self) -> None:
        with nbd.Nbd(self.socket, "d") as client:
            for length in (512, 4096, 65_536, 512, 300_000 // 512 * 512):
                self._change(client, nbd.WRITE, length)
            for command in (nbd.ZERO, nbd.TRIM):
                self._change(client, command, 8192)
            client.flush()
            self._change(client, nbd.WRITE, 4096, flags=nbd.FUA)

    def _change(self, client: nbd.Nbd, command: int, length: int, flags: int = 0) -> None:
        at = self.rng.randrange(0, SIZE // 2 - length, 512)
        data = self.rng.randbytes(length) if command == nbd.WRITE else b""
        self.unsure.append((at, length))
        given = {"data": data} if data else {"length": length}
        reply = client.call(command, at, flags=flags, **given)
        if reply.error == 0:
            self.model[at : at + length] = data or bytes(length)
            self.unsure.pop()

    def _hold(self, follower: Follower) -> None:
        follower.stream.call("mark", body=_BODY)
        follower.stream.call("hold", checkpoint=_ID, timeout_ms=100, body=_BODY)
        follower.stream.call("release", checkpoint=_ID)
        follower.take()

    def _fault(self, follower: Follower, op: str, error: str | None, **wanted: int) -> None:
        fields = {"after": 0, "count": 1, "delay_ms": 0, "short": 0, **wanted}
        follower.stream.call("failpoint", disk="d", op=op, error=error, **fields)

    def _faults(self, follower: Follower) -> None:
        """A refused write, and requests that cannot be done in line."""
        self._fault(follower, "write", "EIO")
        with nbd.Nbd(self.socket, "d") as client:
            self._change(client, nbd.WRITE, 4096)
        follower.sync()
        self.unsure.clear()  # an error was answered: the range is what it is
        self.model[:] = self.disk.read_bytes()
        self._fault(follower, "read", "EIO", after=1 << 30)
        self._requests()
        self._fault(follower, "read", None)
        follower.take()

    def _overflow(self, follower: Follower) -> None:
        with nbd.Nbd(self.socket, "d") as client:
            for _ in range(8):
                self._change(client, nbd.WRITE, 1 << 20)
        follower.sync()

    def _failed_flush(self, follower: Follower) -> None:
        self._fault(follower, "flush", "EIO")
        with nbd.Nbd(self.socket, "d") as client:
            assert client.call(nbd.FLUSH).error == nbd.EIO

    def check_disk(self) -> None:
        """Every answered write is on the disk; what was not answered may be, whole or in part."""
        found, expected = bytearray(self.disk.read_bytes()), self.model
        for at, length in self.unsure:
            found[at : at + length] = expected[at : at + length]
        assert not difference(found, expected)

    def go_on(self, successor: Tap) -> None:
        """The stream's records make the disk, over the successor."""
        attached = successor.attach(self.disk, ring_bytes=_RING_BYTES)
        stream = Stream(attached.stream_socket)
        if self.follower is None:
            self.follower = Follower(stream)
        else:
            self.follower.reopen(stream)
        self.follower.sync()
        with nbd.Nbd(attached.nbd_socket, "d") as client:
            client.write(SIZE - 4096, b"after" * 800 + bytes(96))
        self.follower.take()
        assert not difference(self.follower.image(), self.disk.read_bytes())
        stream.channel.close()


def _die(life: Life) -> bool:
    """Live; whether the failpoint ended it."""
    process = life.tap.process
    assert process is not None
    try:
        life.live()
    except _ENDS:
        # The process may take a moment to be gone, but then it is gone by the signal.
        with contextlib.suppress(Exception):
            process.wait(5)
        if process.poll() is None:
            raise
    return process.poll() == -signal.SIGKILL


@pytest.mark.root
@pytest.mark.parametrize("point", POINTS)
def test_a_tap_that_dies_there_loses_nothing(
    start_tap: StartTap,
    make_disk: MakeDisk,
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    # Extents are marked on disks whose content outlives their host.
    folder = storage if point.startswith("mark_") else None
    reached = 0
    for number, arrival in enumerate(ARRIVALS):
        disk = make_disk(SIZE, f"{number}.img", folder)
        with disk.open("r+b") as file:
            file.write(random.Random(number).randbytes(1 << 20))
        with monkeypatch.context() as environment:
            environment.setenv("HOLDFAST_FAILPOINT", f"{point}:{arrival}")
            try:
                life = Life(start_tap(f"t{number}"), disk)
            except (RuntimeError, OSError):  # it died while it started
                reached += 1
                continue
        life.model[:] = disk.read_bytes()
        reached += _die(life)
        life.check_disk()
        life.go_on(start_tap(f"t{number}"))
    tried("kills at failpoints", reached)
    assert reached, f"{point} was never reached"


def test_control_a_lost_write_is_noticed(start_tap: StartTap, make_disk: MakeDisk) -> None:
    """Were one answered write not on the disk, or not in the records."""
    disk = make_disk(SIZE)
    life = Life(start_tap(), disk)
    life.live()
    life.check_disk()
    life.model[4096] ^= 1
    with pytest.raises(AssertionError):
        life.check_disk()
    successor = start_tap()
    with disk.open("r+b") as file:
        file.seek(0)
        file.write(b"unseen")
    with pytest.raises(AssertionError):
        life.go_on(successor)
