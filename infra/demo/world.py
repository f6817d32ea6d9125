"""Who and what takes part: one service, two enterprises, three hosts, four protected disks."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from infra.demo.guest import Guest, fetch_kernel, make_initrd
from infra.demo.host import SITE, Group, Host, Seat
from infra.demo.ledger import Acknowledged
from infra.demo.machine import Machine, Owner, can_mount, make_disk
from infra.demo.mounted import Mounted
from infra.demo.notebook import DISK_BYTES as NOTEBOOK_BYTES
from infra.demo.notebook import Notebook
from infra.demo.processes import Processes
from infra.demo.report import DemoFailed, Report
from infra.demo.service import TERRITORY, Service, Tenant
from infra.demo.shell import Shell

MACHINE, NOTES, BOOKS = "shop", "notes", "books"
_LEDGER_RING_MIB, _NOTES_RING_MIB = 128, 8


@dataclass
class Written:
    """A protected disk without a file system, and who writes it."""

    seat: Seat
    machine: str
    notebook: Notebook
    group: Group | None = None
    #: The newest pages that were acknowledged before and after the checkpoint.
    noted: tuple[int, int] = (0, 0)

    def take_checkpoint(self, tag: str) -> None:
        """Take it while pages are written; DemoFailed."""
        self.notebook.require()
        before = self.notebook.last
        self.seat.tenant.checkpoint(self.its_group.name, tag)
        self.noted = (before, self.notebook.last)

    @property
    def its_group(self) -> Group:
        """The group, once it is protected."""
        assert self.group is not None
        return self.group


@dataclass
class World:
    """All of it, in one folder. `cleanup` ends whatever was started."""

    folder: Path
    report: Report
    cleanup: ExitStack
    acknowledged: Acknowledged = field(default_factory=Acknowledged)

    #: The disk with the database, wherever it lies now.
    disk: Path = field(init=False)

    def __post_init__(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir(mode=0o700)
        self.owner = Owner.choose()
        self.processes = Processes(logs)
        self.cleanup.callback(self.processes.stop_all)
        self.shell = Shell(self.folder, self.processes, self.report)
        self.service = Service(self.shell)
        # Ended before its hosts: it has the most to put away.
        self.cleanup.callback(self.service.stop)
        self.hosts: list[Host] = []

    # --- machines

    def choose_machine(self, way: str) -> str:
        """How the disk with the database is used; DemoFailed if it cannot be as asked."""
        why_not = can_mount()
        if way == "auto":
            way = "guest" if why_not else "mounted"
        elif way == "mounted" and why_not:
            raise DemoFailed(f"Mounting is not possible here: {why_not}.", "Leave it out.")
        self.make_machine = {"mounted": self._mounted, "guest": self._guest}[way]()
        told = {
            "mounted": "The disk will be mounted on this host: nbdfuse and a loop device.",
            "guest": f"The disk will be a QEMU guest's ({why_not or 'as asked'}).",
        }
        self.report.say(told[way])
        return way

    def _mounted(self) -> Callable[[str], Machine]:
        def make(name: str) -> Machine:
            machine = Mounted(self.processes, self.owner, self.folder / f"machine-{name}")
            self.cleanup.callback(machine.lose)
            return machine

        return make

    def _guest(self) -> Callable[[str], Machine]:
        kernel, initrd = fetch_kernel(), self.folder / "initrd.gz"
        make_initrd(kernel, initrd)
        return lambda _name: Guest(self.processes, kernel, initrd)

    # --- the service, its tenants, their hosts

    def start_service(self) -> None:
        """Start it, with two tenants."""
        self.service.start()
        self.acme, self.globex = (self.service.make_tenant(name) for name in ("Acme", "Globex"))

    def join_hosts(self) -> None:
        """A host of each tenant, one of the provider's that serves both, and their machines."""
        for tenant in (self.acme, self.globex):
            tenant.run("site", "create", SITE, "--territory", TERRITORY)
        self.lost_host = self._host("acme-host")
        self.at_acme = self.lost_host.join(self.acme, "hypervisor-1", self._move_disk)
        books, notes = partial(_make_machine, BOOKS), partial(_make_machine, NOTES)
        self.at_globex = self._host("globex-host").join(self.globex, "hypervisor-1", books)
        self.shared_host = self._host("shared-host")
        self.acme_shared, self.globex_shared = self.shared_host.serve(
            self.service, "hypervisor-9", (self.acme, self.globex), notes
        )
        self.written = [
            self._notes(self.acme_shared, NOTES),
            self._notes(self.globex_shared, NOTES),
            self._notes(self.at_globex, BOOKS),
        ]

    def _move_disk(self, seat: Seat) -> None:
        self.disk = self.disk.rename(seat.disk(MACHINE))

    def _host(self, folder: str) -> Host:
        host = Host(self.shell, folder)
        self.hosts.append(host)
        self.cleanup.callback(host.stop)
        return host

    # --- what is protected

    def make_disk(self) -> Path:
        """The disk with the database, before there is a host for it."""
        self.disk = self.folder / f"{MACHINE}.raw"
        make_disk(self.disk, self.folder, self.owner)
        return self.disk

    def _notes(self, seat: Seat, machine: str) -> Written:
        folder = self.folder / f"{machine}-{seat.tenant.profile}"
        folder.mkdir()
        notebook = Notebook(self.processes, folder, secrets.token_hex(16))
        self.cleanup.callback(notebook.stop)
        return Written(seat, machine, notebook)

    def protect(self) -> None:
        """A group for each disk."""
        self.ledger = self.at_acme.protect(MACHINE, MACHINE, _LEDGER_RING_MIB)
        for one in self.written:
            one.group = one.seat.protect(one.machine, one.machine, _NOTES_RING_MIB)

    def start_notes(self) -> None:
        """Begin to write."""
        for one in self.written:
            one.notebook.start(one.its_group.uri())

    def of(self, tenant: Tenant) -> Written:
        """What a tenant writes on the shared host."""
        seats = (self.acme_shared, self.globex_shared)
        return next(one for one in self.written if one.seat in seats and one.seat.tenant is tenant)

    def stop_all(self) -> None:
        """End every process that is ours, in order; their state stays."""
        for one in self.written:
            one.notebook.stop()
        self.service.stop()
        for host in self.hosts:
            host.stop()


def _make_machine(name: str, seat: Seat) -> None:
    """Its disk, empty."""
    with seat.disk(name).open("xb") as file:
        file.truncate(NOTEBOOK_BYTES)
