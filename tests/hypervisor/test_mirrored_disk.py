"""A disk that another process keeps and mirrors into the tap, by real processes throughout."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.demo.processes import json_output, program, run, wait_until
from infra.demo.report import DemoFailed
from tests.content import difference
from tests.hypervisor.machines import (
    DISK,
    MIB,
    NODE,
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
from tests.integration.place import Place
from tests.integration.site import GROUP

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
    _found(place, daemon)
    place.site.checkpoint("second")
    second = place.disk.read_bytes()
    detach(place)
    fill(daemon, 14, 5)
    assert group(place)["mirrors"] == []
    with Commands(daemon.other_qmp) as commands:
        assert commands.ask("query-block-jobs") == []
    assert difference(place.export("tag:first"), first) == ""
    assert difference(place.export("tag:second"), second) == ""


def _found(place: Place, daemon: Daemon) -> None:
    """`discover` uses the agent's own connection where it has one, and names what fails."""
    words: list[str | Path] = [
        "--libvirt",
        "test:///default",
        "--qmp",
        place.folder / "nothing",
        "--json",
    ]
    done = run(place.site.agent_command("discover", *words), allowed=[1])
    answer = json.loads(done.stdout)
    by_source = {one["source"]: one for one in answer["machines"]}
    protected = {one["node"]: one["protected"] for one in by_source[str(daemon.qmp)]["disks"]}
    assert protected[NODE] == {
        "group": GROUP, "disk": DISK, "mode": "mirror", "health": "mirrored"
    }  # fmt: skip
    assert protected["file0"] is None
    assert by_source["test:///default"]["name"] == "test"
    (failed,) = answer["failed"]
    assert failed["error"] == "qmp_gone"


def test_a_mirror_that_is_idle_connects_again_to_a_new_tap(place: Place) -> None:
    """Nothing is missing after an orderly restart of the tap, so nothing is brought again."""
    qmp = place.folder / "qmp"
    argv: list[str | Path] = [
        *(program("qemu-system-x86_64"), "-accel", "tcg", "-m", "32", "-nodefaults", "-S"),
        *("-no-user-config", "-display", "none", "-qmp", f"unix:{qmp},server=on,wait=off"),
        *("-blockdev", f"driver=file,node-name=file0,filename={place.disk}"),
        *("-blockdev", f"driver=raw,node-name={NODE},file=file0"),
        *("-device", f"virtio-blk-pci,drive={NODE}"),
    ]
    place.processes.start("qemu", argv)
    wait_until("QMP is there", 20, qmp.exists)
    attach(place, qmp)
    wait_protected(place)
    assert place.site.tap is not None
    place.site.tap.stop()
    wait_health(place, "unprotected", 10)
    place.site.start_tap()
    wait_protected(place)
    # Counted since the tap started, and a mirror that begins again writes the whole disk.
    assert tap_disk(place)["counters"]["zeroes"] == 0
    detach(place)


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
    _given_up(place, daemon)


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


def _given_up(place: Place, daemon: Daemon) -> None:
    """A machine that is gone cannot end its mirror; with --force the tap forgets the disk."""
    daemon.kill()
    with pytest.raises(DemoFailed, match="No QEMU answers"):
        detach(place)
    assert mirror(place)["disk"] == DISK
    detach(place, "--force")
    assert group(place)["mirrors"] == []
    assert group(place)["tap"]["disks"] == []


def _machine_died(place: Place, daemon: Daemon) -> None:
    daemon.kill()
    now = wait_health(place, "unprotected", 1.0)
    assert "QEMU" in now["why"]
    daemon.start()
    fill(daemon, 6)
    wait_protected(place)
