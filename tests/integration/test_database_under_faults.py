"""PostgreSQL on ext4 on a protected disk commits without end while something fails every few
seconds. At the end the journal's disk is the source's, byte for byte; at random checkpoints it
mounts, and the database starts with every transaction that was acknowledged before."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from host_agent.control.client import ask, socket_of
from host_agent.control.errors import AgentNotRunning, CommandRefused
from host_agent.wire.keys import TenantKey
from infra.demo.ledger import Acknowledged, LedgerReport
from infra.demo.machine import Owner, Source, can_mount, make_disk
from infra.demo.mounted import Mounted
from infra.demo.processes import program, run
from infra.demo.site import GROUP, TENANT
from tests.integration.faults import Faults, FolderOfObjects, give_credentials, remove, same_bytes
from tests.integration.place import Place, made_place
from tests.lanes import pick, tried
from tests.servers.faulty_s3 import FaultyS3, running_faulty_s3
from workers.journal.catalogue import choose_stream
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.restore.export import ExportOptions, export
from workers.storage.url import open_store

#: How long it works, how often something fails, and how many checkpoints are looked at.
SECONDS = pick(36, 900, 7_200)
FAULT_SECONDS = pick(4, 10, 10)
CHECKED = pick(3, 20, 100)

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.invariant("I1", "I2", "I3", "I4", "I14"),
    pytest.mark.skipif(can_mount() is not None, reason=f"cannot mount: {can_mount()}"),
]


@dataclass(frozen=True)
class Cut:
    """A checkpoint, and which commits were acknowledged before and after it was asked for."""

    tag: str
    before: int
    after: int


@dataclass
class Scene:
    """The site, its machine, and what is known outside the protected disk."""

    place: Place
    store: FaultyS3
    owner: Owner
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    cuts: list[Cut] = field(default_factory=list)

    def machine(self, name: str) -> Mounted:
        """A machine that runs from a disk."""
        return Mounted(self.place.processes, self.owner, self.place.folder / f"machine-{name}")

    def mark(self) -> None:
        """A checkpoint, where the agent is there and the stream records."""
        socket = socket_of(self.place.site.setup.path("agent.toml"))
        tag, before = f"cut{len(self.cuts)}", self.acknowledged.last
        with contextlib.suppress(AgentNotRunning, CommandRefused):
            ask(socket, {"do": "checkpoint", "group": GROUP, "tag": tag}, seconds=5)
            self.cuts.append(Cut(tag, before, self.acknowledged.last + 1))


@pytest.fixture
def scene() -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-db-") as folder,
        running_faulty_s3() as store,
    ):
        work = Path(folder)
        work.chmod(0o711)  # the database's user passes through
        owner = Owner.choose()
        with made_place(work, 4096, store.url()) as place:
            store.objects = FolderOfObjects(place.bucket)  # type: ignore[assignment]
            place.disk.unlink()
            make_disk(place.disk, work, owner)
            give_credentials(place)
            yield Scene(place, store, owner)


def _work(scene: Scene, machine: Mounted) -> Faults:
    """The database works; faults and checkpoints at random moments."""
    rng = random.Random(23)
    for command in ("ready", "create"):
        code, said = machine.ask(command)
        assert code == 0, said
    machine.work(1, scene.acknowledged.note)
    scene.place.site.wait_protected(lambda _now: None)
    faults = Faults(scene.place, scene.store, rng)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        began, before = time.monotonic(), scene.acknowledged.last
        scene.mark()
        faults.next()
        time.sleep(rng.uniform(0, 1))
        scene.mark()
        time.sleep(max(0.0, FAULT_SECONDS - (time.monotonic() - began)))
        assert scene.acknowledged.last > before, scene.acknowledged.complaints()
    return faults


def _check(scene: Scene, image: Path, least: int, most: int) -> None:
    """A sound file system, and a database with exactly a prefix that is long enough."""
    fsck = program("e2fsck")
    run([fsck, "-p", image], allowed=(0, 1))
    run([fsck, "-f", "-n", image])
    machine = scene.machine(f"look{time.monotonic_ns()}")
    try:
        machine.start(Source(file=image))
        assert machine.ask("ready")[0] == 0
        code, said = machine.ask("report", seconds=300)
        assert code == 0, said
        found = LedgerReport.parse(said[-1])
    finally:
        machine.lose()
    assert found.is_prefix, found
    assert least <= found.last <= most, (least, found.last, most)


def _restored(scene: Scene, selector: str) -> Path:
    key = TenantKey.parse((scene.place.folder / "tenant.key").read_bytes())
    store = open_store(f"file://{scene.place.bucket}")
    output = scene.place.folder / "restored"
    remove(output)
    identity = choose_stream(store, TENANT, GROUP, None)
    with open_journal(store, identity, key) as journal:
        done = export(journal, resolve(journal, selector), ExportOptions(output, digest=False))
    return done.disks[0].path


def test_every_commit_before_a_checkpoint_is_in_it(scene: Scene) -> None:
    place = scene.place
    machine = scene.machine("source")
    place.site.start_ingest()
    place.site.start_host()
    uri = place.site.attach()
    try:
        machine.start(Source(uri=uri))
        faults = _work(scene, machine)
    finally:
        machine.lose()
    place.drain()
    place.site.stop()
    image = _restored(scene, "latest-write")
    assert same_bytes(image, place.disk)
    _check(scene, image, scene.acknowledged.last, scene.acknowledged.last + 1)
    chosen = random.Random(5).sample(scene.cuts, min(CHECKED, len(scene.cuts)))
    for cut in chosen:
        _check(scene, _restored(scene, f"tag:{cut.tag}"), cut.before, cut.after)
    _control_a_late_commit_is_missed(scene, chosen[0])
    tried("faults under a database", len(faults.done))
    tried("checkpoints of a database", len(chosen))
    assert len(faults.done) >= SECONDS // FAULT_SECONDS // 3
    assert len(chosen) >= min(3, CHECKED)


def _control_a_late_commit_is_missed(scene: Scene, cut: Cut) -> None:
    """Were one more commit expected than the checkpoint can have."""
    with pytest.raises(AssertionError):
        _check(scene, _restored(scene, f"tag:{cut.tag}"), cut.after + 1, 1 << 60)
