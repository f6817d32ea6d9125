"""A guest that runs and writes is attached over QMP, whatever dies meanwhile, and never stops."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from infra.demo.guest import Guest, fetch_kernel, make_initrd
from infra.demo.ledger import Acknowledged
from infra.demo.machine import Source
from infra.demo.processes import Processes, program, run
from infra.demo.report import DemoFailed
from tests.content import difference
from tests.hypervisor.machines import (
    NODE,
    Commands,
    attach,
    detach,
    limit_syncs,
    tap_disk,
    wait_copying,
    wait_health,
    wait_protected,
)
from tests.integration.place import Place
from tests.integration.test_guest import make_guest_disk

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(300)]

#: The longest time between two lines of the guest, on a machine that is busy with other tests.
_GAP_SECONDS = 8.0


@pytest.fixture
def kernel() -> Path:
    try:
        return fetch_kernel()
    except DemoFailed as missing:
        pytest.skip(f"no guest kernel to be had: {missing.message}")


class Machine(Guest):
    """A guest with named nodes and two QMP sockets: one for the agent, one for the test."""

    def __init__(self, processes: Processes, kernel: Path, folder: Path) -> None:
        super().__init__(processes, kernel, folder / "initrd.gz")
        self.qmp, self.other_qmp = folder / "qmp", folder / "qmp2"

    def _boot(self, source: Source) -> None:
        argv: list[str | Path] = [
            *(program("qemu-system-x86_64"), "-accel", "tcg", "-m", "192", "-nodefaults"),
            *("-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-name", "ledger", "-uuid", "6b1c6a5c-9d1c-4b1c-8f3a-0c1d2e3f4a5b"),
            *("-kernel", self._kernel / "vmlinuz", "-initrd", self._initrd),
            *("-append", "console=ttyS0 quiet loglevel=1 panic=-1"),
            *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
            *("-qmp", f"unix:{self.other_qmp},server=on,wait=off"),
            *("-blockdev", f"driver=file,node-name=file0,filename={source.file},discard=unmap"),
            *("-blockdev", f"driver=raw,node-name={NODE},file=file0,discard=unmap"),
            *("-device", f"virtio-blk-pci,drive={NODE},id=root"),
        ]
        self._qemu = self._processes.start("guest", argv, pipes=True)
        threading.Thread(target=self._read, args=(self._qemu,), daemon=True).start()


class Watched(Acknowledged):
    """The ledger's lines, and the longest time between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gap = 0.0
        self._heard = time.monotonic()

    def note(self, line: str) -> bool:
        now = time.monotonic()
        self.gap = max(self.gap, now - self._heard)
        self._heard = now
        return super().note(line)


def lines_of(image: Path) -> int:
    """Lines of the ledger in a restored disk, all of them right."""
    run([program("e2fsck"), "-fy", image], allowed=(0, 1))
    text = run([program("debugfs"), "-R", "cat /srv/ledger", image]).stdout
    lines = text.splitlines()
    assert lines == [f"entry {n} of this ledger" for n in range(1, len(lines) + 1)]
    return len(lines)


def more(acknowledged: Watched, count: int) -> None:
    assert acknowledged.wait_for(acknowledged.last + count, 60), acknowledged.complaints()


@pytest.mark.invariant("I1", "I2", "I4", "I7")
def test_a_guest_is_attached_and_detached_while_it_runs(place: Place, kernel: Path) -> None:
    place.disk.unlink()
    with place.disk.open("xb") as file:
        file.truncate(64 << 20)
    make_guest_disk(place.disk, place.folder)
    make_initrd(kernel, place.folder / "initrd.gz")
    guest = Machine(place.processes, kernel, place.folder)
    guest.start(Source(file=place.disk))
    acknowledged = Watched()
    guest.work(1, acknowledged.note)
    more(acknowledged, 10)

    limit_syncs(place, 8)
    attach(place, guest.qmp)
    wait_copying(place, 1 << 20)
    place.kill(place.site.agent)
    more(acknowledged, 5)
    place.site.start_agent()
    limit_syncs(place, 8000)
    wait_protected_while_it_writes(place)
    marks = [checkpoint(place, acknowledged, "first")]
    place.kill(place.site.agent)
    more(acknowledged, 5)
    place.site.start_agent()
    wait_protected_while_it_writes(place)
    assert tap_disk(place)["counters"]["connections"] == 1, "the job was never interrupted"
    place.kill(place.site.tap)
    more(acknowledged, 5)
    place.site.start_tap()
    wait_protected_while_it_writes(place)
    marks.append(checkpoint(place, acknowledged, "second"))

    final = freeze(place, guest)
    detach(place)
    more(acknowledged, 20)
    guest.lose()
    assert acknowledged.complaints() == ""
    assert acknowledged.gap < _GAP_SECONDS
    assert difference(place.export("tag:final"), final) == ""
    for tag, before, after in marks:
        exported = place.safe.export(f"tag:{tag}", place.folder / tag).image
        assert before <= lines_of(exported) <= after + 1


def wait_protected_while_it_writes(place: Place) -> None:
    wait_health(place, "mirrored")
    deadline = time.monotonic() + 30
    while place.site.status()["state"] != "recording":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def checkpoint(place: Place, acknowledged: Watched, tag: str) -> tuple[str, int, int]:
    """A checkpoint while the guest writes: its tag, and the lines before and after it."""
    before = acknowledged.last
    place.site.checkpoint(tag)
    after = acknowledged.last
    more(acknowledged, 5)
    return tag, before, after


def freeze(place: Place, guest: Machine) -> bytes:
    """Hold the machine's processors, make a checkpoint, and let it go on; the disk meanwhile."""
    with Commands(guest.other_qmp) as commands:
        commands.ask("stop")
        try:
            wait_protected(place)
            place.site.checkpoint("final")
            return place.disk.read_bytes()
        finally:
            commands.ask("cont")
