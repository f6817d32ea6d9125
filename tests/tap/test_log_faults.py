"""Calls on the files that a successor reads fail: guests go on, and nothing is believed."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, StartTap
from tests.tap.daemon import Stream, Tap
from tests.tap.follow import Follower
from tests.tap.test_hot import EXTENT, Host, hot, log_of, marked, until

SIZE = 64 << 20


@contextmanager
def injected(tap: Tap, path: Path, calls: str, fault: str) -> Iterator[None]:
    """The n-th such call on a file of the tap ends in the fault."""
    command = ["strace", "-f", "-q", "-o", "/dev/null", "-P", str(path), "-p", str(tap.pid)]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        status = Path("/proc") / str(tap.pid) / "status"
        deadline = time.monotonic() + 10
        while "TracerPid:\t0" in status.read_text():
            assert time.monotonic() < deadline
            assert tracer.poll() is None
            time.sleep(0.01)
        try:
            yield
        finally:
            tracer.terminate()
            tracer.wait(10)


@pytest.fixture
def host(start_tap: StartTap, make_disk: MakeDisk, storage: Path) -> Host:
    """System calls can be made to fail only where threads make them."""
    tap = start_tap(engine="threads")
    attached = tap.attach(make_disk(SIZE, folder=storage))
    follower = Follower(Stream(attached.stream_socket))
    follower.sync()
    made = Host(tap, attached, follower)
    made.settle()
    return made


@pytest.mark.invariant("I1", "I3", "I6", "I11")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("when", [1, 2])
def test_the_log_cannot_be_written(host: Host, start_tap: StartTap, error: str, when: int) -> None:
    """No write fails or stays out, the disk is untrusted, and after a power cut all is read."""
    rng = random.Random(when)
    with injected(host.tap, log_of(host.tap), "pwritev2", f"error={error}:when={when}"):
        for extent in (3, 5, 7):
            host.write(extent * EXTENT // 4096, rng.randbytes(4096))
    assert hot(host.tap)["state"] == "untrusted"
    assert hot(host.tap)["errors"] == 1
    host.follower.take()
    assert host.follower.image() == host.image()
    host.write(9 * EXTENT // 4096, rng.randbytes(4096))
    host.cut_power(rng)
    tap = start_tap()
    assert tap.group()["to_read_bytes"] == SIZE
    host.follower.reopen(Stream(host.attached.stream_socket))
    host.follower.sync()
    assert host.follower.image() == host.image()


@pytest.mark.invariant("I1", "I3")
def test_a_log_write_that_is_cut_short_goes_on(host: Host) -> None:
    """Only what the system left out is written again, and nobody takes it for a failure."""
    with injected(host.tap, log_of(host.tap), "pwritev2", "retval=512:when=1"):
        host.write(3 * EXTENT // 4096, b"w" * 4096)
    assert hot(host.tap)["state"] == "marked"
    assert hot(host.tap)["errors"] == 0


def _page(host: Host, at: int) -> bytes:
    with host.attached.path.open("rb") as file:
        file.seek(at)
        return file.read(4096)


@pytest.mark.invariant("I3")
def test_a_write_reaches_its_disk_behind_its_mark(host: Host) -> None:
    """Although it was started with it; what comes meanwhile shares the mark that is on its way."""
    at, before = 3 * EXTENT, hot(host.tap)
    old = _page(host, at)
    with injected(host.tap, log_of(host.tap), "pwritev2", "delay_enter=1000000:when=1"):
        host.client.submit(nbd.WRITE, at, data=b"w" * 4096)
        time.sleep(0.3)
        host.client.submit(nbd.WRITE, at + 4096, data=b"v" * 4096)
        time.sleep(0.2)
        assert (_page(host, at), _page(host, at + 4096)) == (old, old)
        assert 3 not in marked(host.tap)[1]
        assert [host.client.receive().error for _ in range(2)] == [0, 0]
    assert (_page(host, at), _page(host, at + 4096)) == (b"w" * 4096, b"v" * 4096)
    after = hot(host.tap)
    assert after["waits"] == before["waits"] + 2
    assert after["marked"] == before["marked"] + 1
    assert after["commits"] == before["commits"] + 1


@pytest.mark.invariant("I3")
def test_a_killed_tap_does_not_make_a_bad_log_good(host: Host, start_tap: StartTap) -> None:
    """The log could be neither corrected nor removed; the ring still says what it is worth."""
    stale = log_of(host.tap).read_bytes()
    path = log_of(host.tap)
    host.follower.stream.call("failpoint", disk="d", op="log", error="EIO", count=1)
    host.write(3 * EXTENT // 4096, b"w" * 4096)
    deadline = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < deadline
    path.write_bytes(stale)
    host.tap.kill()
    host.client.close()
    host.tap = start_tap()
    assert hot(host.tap)["state"] == "whole"
    host.tap.kill()
    for ring in host.tap.ring_dir.iterdir():
        ring.unlink()
    assert start_tap().group()["to_read_bytes"] == SIZE


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("damage", ["gone", "short", "superblocks", "pages"])
def test_a_log_that_is_not_whole_is_not_believed(
    host: Host, start_tap: StartTap, damage: str
) -> None:
    host.cut_power(random.Random(1))
    path = next(host.tap.state_dir.glob("*.hot"))
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[:-1])
    else:
        for at in (100, 4196) if damage == "superblocks" else (8192 + 100, 12288 + 100):
            data[at] ^= 1
        path.write_bytes(data)
    assert start_tap().group()["to_read_bytes"] == SIZE


@pytest.mark.invariant("I1", "I6")
def test_the_state_folder_cannot_be_written(
    start_tap: StartTap, make_disk: MakeDisk, storage: Path
) -> None:
    """What was stored cannot be told to a successor: all goes on, but marks do not count."""
    tap = start_tap(engine="threads")
    attached = tap.attach(make_disk(SIZE, folder=storage))
    fresh = tap.state_dir / "g.group-new"
    fresh.mkdir()
    follower = Follower(Stream(attached.stream_socket))
    follower.sync()
    assert hot(tap)["state"] == "untrusted"
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"w" * 4096)
    follower.take()
    assert follower.image() == attached.path.read_bytes()
    assert tap.group()["state"] == "recording"
    fresh.rmdir()


@pytest.mark.invariant("I3")
def test_a_disk_that_cannot_be_flushed_is_no_clean_stop(host: Host, start_tap: StartTap) -> None:
    """What an orderly stop leaves must be durable, else it was none."""
    host.write(3 * EXTENT // 4096, b"w" * 4096)
    host.follower.take()
    process = host.tap.process
    assert process is not None
    with injected(host.tap, host.attached.path, "fdatasync", "error=EIO:when=1"):
        host.client.close()
        host.tap.call("stop")
        assert process.wait(20) != 0
    host.tap.process = None
    tap = start_tap()
    assert (tap.group()["state"], tap.group()["cause"]) == ("dirty", "unclean_stop")
    assert 3 in marked(tap)[1]
    until(host.follower, lambda: True)
