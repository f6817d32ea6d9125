"""A guest under QEMU's emulation on a protected disk: killed, its disk deleted, and back again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from infra.demo.guest import Guest, fetch_kernel, make_initrd
from infra.demo.ledger import Acknowledged
from infra.demo.machine import Source, put_busybox
from infra.demo.processes import program, run
from infra.demo.report import DemoFailed
from tests.content import difference
from tests.integration.place import Place

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def kernel() -> Path:
    try:
        return fetch_kernel()
    except DemoFailed as missing:
        pytest.skip(f"no guest kernel to be had: {missing.message}")


def make_guest_disk(disk: Path, folder: Path) -> None:
    """A bootable ext4 disk: busybox, the ledger's script, an empty ledger."""
    root = folder / "guest-root"
    for name in ("bin", "dev", "etc", "proc", "srv"):
        (root / name).mkdir(parents=True)
    put_busybox(root)
    shutil.copy(Path(__file__).with_name("guest_start.sh"), root / "srv/start.sh")
    (root / "srv/ledger").touch()
    run([program("mkfs.ext4"), "-q", "-d", root, disk])
    shutil.rmtree(root)


def ledger(guest: Guest) -> tuple[int, int]:
    """Lines of the ledger, and how many of them are wrong."""
    code, said = guest.ask("report")
    assert code == 0
    lines, wrong = said[-1].split()
    return int(lines), int(wrong)


def boot(place: Place, kernel: Path, source: Source) -> Guest:
    guest = Guest(place.processes, kernel, place.folder / "initrd.gz")
    guest.start(source)
    return guest


@pytest.mark.invariant("I1", "I2", "I4")
def test_a_killed_guest_boots_from_the_journal_and_has_its_data(place: Place, kernel: Path) -> None:
    make_guest_disk(place.disk, place.folder)
    make_initrd(kernel, place.folder / "initrd.gz")
    uri = place.protect()
    acknowledged = Acknowledged()
    guest = boot(place, kernel, Source(uri=uri))
    guest.work(1, acknowledged.note)
    assert acknowledged.wait_for(50, 60), acknowledged.complaints()
    before = acknowledged.last
    place.site.checkpoint("chosen")
    after = acknowledged.last
    assert acknowledged.wait_for(after + 50, 60)
    guest.lose()
    time.sleep(0.5)
    last = acknowledged.last
    place.drain()
    source = place.lose()

    exported = place.safe.export("tag:chosen", place.folder / "chosen").image
    guest = boot(place, kernel, Source(file=exported))
    lines, wrong = ledger(guest)
    assert wrong == 0
    assert before <= lines <= after + 1
    guest.lose()

    assert difference(place.export("latest-write"), source) == ""
    served = place.safe.serve("latest-write", place.folder / "served")
    guest = boot(place, kernel, Source(uri=served.uri))
    lines, wrong = ledger(guest)
    assert wrong == 0
    assert last <= lines <= last + 1
    # The recovered machine goes on where it was.
    went_on = Acknowledged()
    guest.work(lines + 1, went_on.note)
    assert went_on.wait_for(lines + 20, 60)
    assert ledger(guest)[1] == 0
    guest.lose()
    served.process.stop()


def test_the_ledgers_check_is_not_blind(place: Place, kernel: Path) -> None:
    """The control: a ledger with a line gone is told from a whole one."""
    root = place.folder / "ledger"
    root.write_text("".join(f"entry {n} of this ledger\n" for n in (1, 2, 4, 5)))
    make_guest_disk(place.disk, place.folder)
    run([program("debugfs"), "-w", "-R", "rm /srv/ledger", place.disk])
    run([program("debugfs"), "-w", "-R", f"write {root} /srv/ledger", place.disk])
    make_initrd(kernel, place.folder / "initrd.gz")
    guest = boot(place, kernel, Source(file=place.disk))
    assert ledger(guest) == (4, 2)
    guest.lose()
