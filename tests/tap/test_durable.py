"""A flush and a durable write reach the device before their answer: seen from outside, by the
system calls that the tap makes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, StartTap
from tests.tap.daemon import Tap

_CALLS = "pwrite64,pwritev2,fdatasync"
_SECONDS = 10.0

pytestmark = [
    pytest.mark.invariant("I1"),
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows the system calls"),
]

Ask = Callable[[nbd.Nbd], None]


def _is_traced(pid: int) -> bool:
    threads = (Path("/proc") / str(pid) / "task").iterdir()
    return all("TracerPid:\t0\n" not in (one / "status").read_text() for one in threads)


def _calls(tap: Tap, client: nbd.Nbd, log: Path, ask: Ask) -> str:
    """The calls for disks that the tap makes from a request to its answer."""
    command = ["strace", "-f", "-qq", "-e", f"trace={_CALLS}", "-s", "1", "-o", str(log)]
    with subprocess.Popen([*command, "-p", str(tap.pid)], stderr=subprocess.DEVNULL) as trace:
        try:
            deadline = time.monotonic() + _SECONDS
            while not _is_traced(tap.pid):
                assert trace.poll() is None, "this machine lets nobody trace"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            ask(client)
        finally:
            trace.terminate()
    return log.read_text()


@pytest.fixture
def calls(
    start_tap: StartTap, make_disk: MakeDisk, memory: Path, storage: Path
) -> Callable[[Ask], str]:
    """What a tap calls for a request. Its engine of threads makes all calls itself."""
    tap = start_tap(engine="threads")
    attached = tap.attach(make_disk(1 << 20, folder=storage), cache="writeback")

    def of(ask: Ask) -> str:
        with nbd.Nbd(attached.nbd_socket, "d") as client:
            client.write(0, b"p" * 4096)
            return _calls(tap, client, memory / "calls", ask)

    return of


def test_a_fua_write_is_synced_before_its_answer(calls: Callable[[Ask], str]) -> None:
    def ask(client: nbd.Nbd) -> None:
        assert client.call(nbd.WRITE, 8192, data=b"f" * 4096, flags=nbd.FUA).error == 0

    made = calls(ask)
    assert "RWF_DSYNC" in made or "fdatasync" in made, made


def test_a_flush_is_a_sync_before_its_answer(calls: Callable[[Ask], str]) -> None:
    assert "fdatasync" in calls(lambda client: client.flush())


def test_control_an_ordinary_write_is_not_synced(calls: Callable[[Ask], str]) -> None:
    made = calls(lambda client: client.write(8192, b"o" * 4096))
    assert "pwrite" in made, made
    assert "RWF_DSYNC" not in made
    assert "fdatasync" not in made
