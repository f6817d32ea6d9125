"""A disk that another process keeps and mirrors into the tap, by real processes throughout."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.demo.processes import run
from infra.demo.report import DemoFailed
from infra.demo.site import GROUP, json_output
from tests.hypervisor.machines import (
    MIB,
    Commands,
    Daemon,
    attach,
    detach,
    group,
    limit_syncs,
    mirror,
    tap_disk,
    wait_copying,
    wait_health,
    wait_protected,
)
from tests.integration.place import Place, difference

#: The longest write, on a machine that is busy with other tests.
_SLOWEST_SECONDS = 2.0

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(240)]


class Writers:
    """Machines that write without a pause, several writes at a time; all must succeed."""

    def __init__(self, daemon: Daemon) -> None:
        self.slowest = 0.0
        self._daemon = daemon
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> Writers:
        self._work = [self._pool.submit(self._write, seed) for seed in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        for one in self._work:
            one.result()

    def _write(self, seed: int) -> None:
        rng = random.Random(seed)
        with self._daemon.write() as guest:
            while not self._is_over.is_set():
                data = rng.randbytes(4096)
                begun = time.monotonic()
                guest.write(rng.randrange(guest.size // 4096) * 4096, data)
                self.slowest = max(self.slowest, time.monotonic() - begun)
                # The ring must hold what comes between two commits.
                time.sleep(0.002)


def fill(daemon: Daemon, seed: int, count: int = 100) -> None:
    """Writes of the machine, all of them acknowledged."""
    rng = random.Random(seed)
    with daemon.write() as guest:
        for _ in range(count):
            at = rng.randrange(guest.size // 4096 - 16) * 4096
            guest.write(at, rng.randbytes(4096 * rng.randint(1, 16)))
        guest.zero(MIB, 64 << 10)
        guest.flush()


@pytest.mark.invariant("I1", "I2")
def test_agents_come_and_go_and_the_job_goes_on(place: Place, daemon: Daemon) -> None:
    rng = random.Random(11)
    with place.disk.open("r+b") as disk:
        disk.write(rng.randbytes(16 * MIB))
    limit_syncs(place, 40)
    with pytest.raises(DemoFailed, match="no node 'nothing'"):
        attach(place, daemon.qmp, "nothing")
    answer = attach(place, daemon.qmp)
    assert answer["size"] == place.disk.stat().st_size
    assert answer["refused_meanwhile"]
    before = wait_copying(place, 4 * MIB)
    place.kill(place.site.agent)
    with daemon.write() as guest:
        guest.write(0, rng.randbytes(MIB))
        guest.write(20 * MIB, rng.randbytes(MIB))
    place.site.start_agent()
    wait_copying(place, int(before["job"]["done_bytes"]))
    limit_syncs(place, 8000)
    wait_protected(place)
    place.site.checkpoint("first")
    first = place.disk.read_bytes()
    place.kill(place.site.agent)
    fill(daemon, 12)
    place.site.start_agent()
    wait_protected(place)
    assert tap_disk(place)["counters"]["connections"] == 1, "the job was never interrupted"
    place.site.checkpoint("second")
    second = place.disk.read_bytes()
    detach(place)
    fill(daemon, 14, 5)
    assert group(place)["mirrors"] == []
    with Commands(daemon.other_qmp) as commands:
        assert commands.ask("query-block-jobs") == []
    assert difference(place.export("tag:first"), first) == ""
    assert difference(place.export("tag:second"), second) == ""


@pytest.mark.invariant("I1", "I4", "I7")
def test_a_mirror_that_breaks_is_seen_and_mended(place: Place, daemon: Daemon) -> None:
    fill(daemon, 1)
    attach(place, daemon.qmp)
    wait_protected(place)
    _cancelled(place, daemon)
    _overflown(place, daemon)
    _tap_killed(place, daemon)
    _machine_died(place, daemon)
    place.site.checkpoint("end")
    assert difference(place.export("tag:end"), place.disk.read_bytes()) == ""


def _cancelled(place: Place, daemon: Daemon) -> None:
    """Somebody ends the job behind our back."""
    with Commands(daemon.other_qmp) as commands:
        (job,) = commands.ask("query-block-jobs")
        begun = time.time()
        commands.ask("block-job-cancel", device=job["device"], force=True)
    # So small a disk may be whole again before anybody looks.
    deadline = time.monotonic() + 10
    while not (lost := mirror(place)["last_loss"]):
        assert time.monotonic() < deadline
    assert 0 <= lost["at"] - begun < 1.0
    assert lost["why"] == "somebody cancelled the mirror job"
    fill(daemon, 2)
    wait_protected(place)


def _overflown(place: Place, daemon: Daemon) -> None:
    """The ring is full: the machine's writes go on, QEMU keeps what is missing."""
    refused = mirror(place)["refused_writes"]
    json_output(place.site.agent_command("pause", GROUP, "--json"))
    rng = random.Random(3)
    with daemon.write() as guest:
        for at in range(24):
            guest.write(at % 12 * MIB, rng.randbytes(MIB))
    now = wait_health(place, "unprotected", 1.0)
    assert now["refused_writes"] > refused
    assert group(place)["phase"] == "unprotected"
    shown = run(place.site.agent_command("status")).stdout
    assert "mirror vda" in shown
    assert "held up by mirror: disk vda: the mirror job met an error" in shown
    with Writers(daemon) as writers:
        json_output(place.site.agent_command("resume", GROUP, "--json"))
        wait_health(place, "mirrored")
    assert writers.slowest < _SLOWEST_SECONDS
    wait_protected(place)


def _tap_killed(place: Place, daemon: Daemon) -> None:
    """A new tap cannot vouch for what its predecessor recorded: the whole disk again."""
    place.kill(place.site.tap)
    fill(daemon, 4)
    assert wait_health(place, "unprotected", 2.0)["why"]
    place.site.start_tap()
    fill(daemon, 5)
    wait_protected(place)


def _machine_died(place: Place, daemon: Daemon) -> None:
    daemon.kill()
    now = wait_health(place, "unprotected", 1.0)
    assert "QEMU" in now["why"]
    daemon.start()
    fill(daemon, 6)
    wait_protected(place)
