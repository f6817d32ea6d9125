"""Recovered disks: served at once, filled when needed, and what the guest wrote wins."""

from __future__ import annotations

import mmap
import os
import random
import select
import shutil
import threading
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import StartTap
from tests.tap.daemon import Attached, Channel, Tap

SIZE = 1 << 20
WINDOW = 256 << 10


class Provider:
    """Answers what the tap needs from `source`, in a thread."""

    def __init__(self, socket: Path, source: bytes) -> None:
        self.channel = Channel(socket)
        self.source = source
        self.window = os.memfd_create("window")
        os.ftruncate(self.window, WINDOW)
        self.map = mmap.mmap(self.window, WINDOW)
        self.channel.answer(self.channel.send_with(self.window, "provide", window_bytes=WINDOW))
        self.needs: list[tuple[int, int]] = []
        self.refuses = False
        self._thread: threading.Thread | None = None
        self._halted = threading.Event()
        self.error: BaseException | None = None

    def serve(self) -> Provider:
        """From now on, until the channel closes."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            while not self._halted.is_set():
                if self.channel.events or select.select([self.channel.socket], [], [], 0.02)[0]:
                    self.give(self.channel.next_event())
        except (OSError, ConnectionError, TimeoutError):
            pass
        except BaseException as error:
            self.error = error
            raise

    def give(self, need: dict[str, object]) -> None:
        """What one event asks for."""
        ticket, offset, length = need["ticket"], int(str(need["offset"])), int(str(need["length"]))
        self.needs.append((offset, length))
        if self.refuses:
            self.channel.call("refuse", ticket=ticket, message="gone")
            return
        at = offset
        while at < offset + length:
            count = min(WINDOW, offset + length - at)
            self.fill(at, count)
            at += count
        self.channel.call("served", ticket=ticket)

    def halt(self) -> None:
        """Answer no more: the channel is the caller's again."""
        self._halted.set()
        assert self._thread is not None
        self._thread.join(10)

    def fill(self, offset: int, length: int) -> None:
        """Hand over a range, as zeroes if it is nothing else."""
        data = self.source[offset : offset + length]
        self.map[:length] = data
        at = None if not any(data) else 0
        self.channel.call("fill", disk="d", offset=offset, length=length, at=at)

    def missing(self, start: int = 0) -> tuple[int, int]:
        """The first range that is not there."""
        answer = self.channel.call("missing", disk="d", **{"from": start})
        return answer.get("offset", 0), answer["length"]

    def close(self) -> None:
        """Go away."""
        self.channel.socket.shutdown(2)
        if self._thread:
            self._thread.join(10)
        self.channel.close()


def source(seed: int = 1) -> bytes:
    """Half data, half zeroes."""
    rng = random.Random(seed)
    return b"".join(rng.choice([bytes(4096), rng.randbytes(4096)]) for _ in range(SIZE // 4096))


def recover(tap: Tap, folder: Path) -> Attached:
    """A recovered disk without content yet."""
    path = folder / "recovered.img"
    answer = tap.call("recover", group="r", disk="d", path=str(path), size=SIZE, block_size=512)
    return Attached(
        "r",
        "d",
        path,
        answer["uri"],
        Path(answer["nbd_socket"]),
        Path(answer["stream_socket"]),
        SIZE,
        0,
    )


@pytest.fixture(params=["memory", "storage"])
def recovered(request: pytest.FixtureRequest, tap: Tap) -> Attached:
    return recover(tap, request.getfixturevalue(request.param))


@pytest.mark.invariant("I3")
def test_reads_bring_what_they_need(recovered: Attached) -> None:
    content = source()
    provider = Provider(recovered.stream_socket, content).serve()
    client = nbd.Nbd(recovered.nbd_socket, "d")
    assert client.size == SIZE
    assert client.read(4096, 8192) == content[4096:12288]
    assert client.read(4096 + 512, 512) == content[4608:5120]
    assert client.read(0, SIZE) == content
    seen = len(provider.needs)
    assert client.read(0, SIZE) == content
    assert len(provider.needs) == seen
    provider.halt()
    assert provider.missing()[1] == 0
    provider.close()
    assert provider.error is None


@pytest.mark.invariant("I1", "I3")
def test_what_the_guest_wrote_wins(recovered: Attached) -> None:
    """Down to a sector in the middle of a fill, before and after it."""
    content = source(2)
    provider = Provider(recovered.stream_socket, content)
    client = nbd.Nbd(recovered.nbd_socket, "d")
    client.write(512, b"w" * 512)
    client.write(64 << 10, b"v" * 1024)
    provider.fill(0, 128 << 10)
    client.write(2048, b"u" * 512)
    provider.fill(0, 128 << 10)
    client.zero(1 << 19, 4096)
    provider.serve()
    expected = bytearray(content)
    expected[512:1024] = b"w" * 512
    expected[64 << 10 : (64 << 10) + 1024] = b"v" * 1024
    expected[2048:2560] = b"u" * 512
    expected[1 << 19 : (1 << 19) + 4096] = bytes(4096)
    assert client.read(0, SIZE) == expected
    provider.close()


@pytest.mark.invariant("I3")
def test_what_is_missing_is_never_called_zero(recovered: Attached) -> None:
    """A copy would trust it: qemu-img skips what is said to be a hole."""
    client = nbd.Nbd(recovered.nbd_socket, "d")
    extents = client.status(0, SIZE)
    assert sum(length for length, _ in extents) == SIZE
    assert not any(flags & 2 for _, flags in extents)


@pytest.mark.invariant("I10")
def test_a_refusal_is_the_guests_error_and_nothing_more(recovered: Attached) -> None:
    content = source(3)
    provider = Provider(recovered.stream_socket, content).serve()
    provider.refuses = True
    client, other = (nbd.Nbd(recovered.nbd_socket, "d") for _ in range(2))
    assert client.call(nbd.READ, 0, 4096).error == nbd.EIO
    other.write(8192, b"o" * 512)
    assert other.read(8192, 512) == b"o" * 512
    provider.refuses = False
    assert client.read(0, 4096) == content[:4096]
    provider.close()


def test_a_provider_that_comes_back(recovered: Attached) -> None:
    """A read that nobody answered yet waits for the next provider."""
    content = source(4)
    client = nbd.Nbd(recovered.nbd_socket, "d")
    first = Provider(recovered.stream_socket, content)
    client.submit(nbd.READ, 0, 4096)
    first.channel.next_event()
    first.close()
    second = Provider(recovered.stream_socket, content).serve()
    reply = client.receive()
    assert reply.error in (0, nbd.EIO)
    if reply.error == 0:
        assert reply.data == content[:4096]
    assert client.read(0, 4096) == content[:4096]
    second.close()


@pytest.mark.invariant("I1", "I3")
def test_many_readers_and_writers_while_it_fills(recovered: Attached) -> None:
    content = source(5)
    provider = Provider(recovered.stream_socket, content).serve()
    expected = bytearray(content)
    rng = random.Random(6)
    clients = [nbd.Nbd(recovered.nbd_socket, "d") for _ in range(3)]
    for _ in range(60):
        for client in clients:
            first = rng.randrange(SIZE // 512 - 16)
            if rng.random() < 0.4:
                data = rng.randbytes(512 * rng.randint(1, 8))
                client.write(512 * first, data)
                expected[512 * first : 512 * first + len(data)] = data
            else:
                assert client.read(512 * first, 4096) == expected[512 * first : 512 * first + 4096]
    assert clients[0].read(0, SIZE) == expected
    provider.close()


@pytest.mark.invariant("I2", "I3")
@pytest.mark.parametrize("dies", ["tap", "host"])
@pytest.mark.parametrize("durable", ["flush", "fua"])
def test_what_was_made_durable_is_never_filled_over(
    start_tap: StartTap, memory: Path, storage: Path, dies: str, durable: str
) -> None:
    """Data and its mark are durable together. A dead host takes what lies in memory with it."""
    content = source(7)
    tap = start_tap()
    attached = recover(tap, storage)
    provider = Provider(attached.stream_socket, content)
    client = nbd.Nbd(attached.nbd_socket, "d")
    provider.fill(0, 64 << 10)
    for offset in (4096, 512 << 10):  # where it was filled, and where nothing is yet
        client.write(offset, b"f" * 4096, nbd.FUA if durable == "fua" else 0)
    if durable == "flush":
        client.flush()
    tap.kill()
    provider.close()
    if dies == "host":
        shutil.rmtree(tap.run_dir)
        shutil.rmtree(tap.ring_dir)
    tap = start_tap()
    attached = recover(tap, storage)
    provider = Provider(attached.stream_socket, content)
    provider.fill(512 << 10, 64 << 10)
    provider.serve()
    client = nbd.Nbd(attached.nbd_socket, "d")
    assert client.read(512 << 10, 4096) == b"f" * 4096
    assert client.read(64 << 10, 4096) == content[64 << 10 : (64 << 10) + 4096]
    assert client.read(4096, 4096) == b"f" * 4096
    provider.close()


@pytest.mark.invariant("I2", "I3")
def test_a_killed_tap_keeps_what_was_not_flushed(start_tap: StartTap, memory: Path) -> None:
    """Only a host's death may lose it: the page cache outlives the tap, and so do the marks."""
    content = source(8)
    tap = start_tap()
    attached = recover(tap, memory)
    provider = Provider(attached.stream_socket, content)
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.write(4096, b"u" * 4096)
    tap.kill()
    provider.close()
    tap = start_tap()
    attached = recover(tap, memory)
    provider = Provider(attached.stream_socket, content)
    provider.fill(0, 64 << 10)
    provider.serve()
    client = nbd.Nbd(attached.nbd_socket, "d")
    assert client.read(0, 12288) == content[:4096] + b"u" * 4096 + content[8192:12288]
    provider.close()


def test_what_is_missing_is_told(recovered: Attached) -> None:
    provider = Provider(recovered.stream_socket, source(9))
    assert provider.missing() == (0, SIZE)
    provider.fill(0, 64 << 10)
    provider.fill(128 << 10, 512)
    assert provider.missing() == (64 << 10, 64 << 10)
    assert provider.missing(128 << 10) == ((128 << 10) + 512, SIZE - (128 << 10) - 512)
    with nbd.Nbd(recovered.nbd_socket, "d") as client:
        client.write(64 << 10, b"w" * (64 << 10))
    assert provider.missing()[0] == (128 << 10) + 512
    provider.close()


def test_closing_a_recovered_group(tap: Tap, recovered: Attached) -> None:
    nbd.Nbd(recovered.nbd_socket, "d").disconnect()
    tap.call("close", group="r")
    assert not tap.call("status")["groups"]
    assert recovered.path.exists()
