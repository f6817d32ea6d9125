"""A recovered disk under everything at once: fills, guests' changes, deaths of the tap."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.content import difference
from tests.tap import nbd
from tests.tap.conftest import StartTap
from tests.tap.daemon import Attached, Tap
from tests.tap.test_recovered import SIZE, Provider, recover, source

SECTOR = 512


class Recovery:
    """One recovered disk, its provider, two guests, and what the disk must hold."""

    def __init__(self, tap: Tap, folder: Path, rng: random.Random) -> None:
        self.tap, self.folder, self.rng = tap, folder, rng
        self.content = source(rng.randrange(1 << 30))
        self.expected = bytearray(self.content)
        self._begin()

    def _begin(self) -> None:
        self.attached: Attached = recover(self.tap, self.folder)
        self.provider = Provider(self.attached.stream_socket, self.content)
        self.clients = [nbd.Nbd(self.attached.nbd_socket, "d") for _ in range(2)]

    def change(self) -> None:
        """A write, trim or zeroes of a guest, while nothing else is in flight over it."""
        command = self.rng.choice([nbd.WRITE, nbd.WRITE, nbd.ZERO, nbd.TRIM])
        count = self.rng.choice([1, 1, 3, 8, 200])
        first = self.rng.randrange(SIZE // SECTOR - count + 1)
        data = self.rng.randbytes(count * SECTOR) if command == nbd.WRITE else b""
        reply = self.rng.choice(self.clients).call(
            command, first * SECTOR, count * SECTOR, data, self.rng.choice([0, nbd.FUA])
        )
        assert reply.error == 0
        self.expected[first * SECTOR : (first + count) * SECTOR] = data or bytes(count * SECTOR)

    def fill(self) -> None:
        """Part of the disk from behind, again perhaps."""
        count = self.rng.choice([1, 7, 64, 512])
        first = self.rng.randrange(SIZE // SECTOR - count + 1)
        self.provider.fill(first * SECTOR, count * SECTOR)

    def fill_and_change_at_once(self) -> None:
        """Both over the same range: whichever comes first, the guest's data stays."""
        first = self.rng.randrange(SIZE // SECTOR - 128)
        data = self.rng.randbytes(64 * SECTOR)
        at = (first + self.rng.randrange(64)) * SECTOR
        self.clients[0].submit(nbd.WRITE, at, data=data)
        self.provider.fill(first * SECTOR, 128 * SECTOR)
        assert self.clients[0].receive().error == 0
        self.expected[at : at + len(data)] = data

    def read(self) -> None:
        """What is missing is brought for it."""
        count = self.rng.choice([1, 9, 100])
        first = self.rng.randrange(SIZE // SECTOR - count + 1)
        client = self.clients[1]
        client.submit(nbd.READ, first * SECTOR, count * SECTOR)
        while not client.has_answer(0.01):
            while self.provider.channel.events or self._has_event():
                self.provider.give(self.provider.channel.next_event())
        expected = self.expected[first * SECTOR : (first + count) * SECTOR]
        assert not difference(client.receive().data, expected)

    def _has_event(self) -> bool:
        try:
            self.provider.channel.socket.settimeout(0.01)
            self.provider.channel.receive()
        except TimeoutError:
            return False
        finally:
            self.provider.channel.socket.settimeout(20)
        return True

    def flush(self) -> None:
        """Durable, marks included."""
        self.clients[0].flush()

    def another_provider(self) -> None:
        """The first goes away."""
        self.provider.close()
        self.provider = Provider(self.attached.stream_socket, self.content)

    def die(self) -> None:
        """The tap alone; the page cache lives on."""
        self.tap.kill()
        self.provider.close()
        self.tap.start()
        self._begin()

    def stop(self) -> None:
        """In order."""
        self.tap.stop()
        self.provider.close()
        self.tap.start()
        self._begin()

    def run(self, steps: int) -> None:
        """So many random steps, then everything is read."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (20, self.change), (15, self.fill), (10, self.fill_and_change_at_once),
            (15, self.read), (4, self.flush), (2, self.another_provider), (1, self.die),
            (1, self.stop),
        ]  # fmt: skip
        for _ in range(steps):
            self.rng.choices([act for _, act in actions], [weight for weight, _ in actions])[0]()
        self.provider.serve()
        assert not difference(self.clients[0].read(0, SIZE), self.expected)
        self.provider.halt()
        assert self.provider.missing()[1] == 0
        assert not difference(self.attached.path.read_bytes(), self.expected)
        self.provider.close()


@pytest.mark.invariant("I1", "I2", "I3")
@pytest.mark.parametrize("engine", ["threads", "io_uring"])
@pytest.mark.parametrize("place", ["memory", "storage"])
@pytest.mark.parametrize("seed", range(3))
def test_recovery_under_everything(
    start_tap: StartTap, request: pytest.FixtureRequest, engine: str, place: str, seed: int
) -> None:
    folder: Path = request.getfixturevalue(place)
    tap = start_tap(engine=engine)
    Recovery(tap, folder, random.Random(seed)).run(80)


def test_control_a_fill_that_does_not_look_is_noticed(
    start_tap: StartTap, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old content written over a guest's, behind the tap's back: the storm says so."""
    recovery = Recovery(start_tap(), memory, random.Random(1))

    def careless() -> None:
        Recovery.fill(recovery)
        with recovery.attached.path.open("r+b") as file:
            file.write(recovery.content[: SIZE // 2])

    monkeypatch.setattr(recovery, "fill", careless)
    with pytest.raises(AssertionError):
        recovery.run(80)
