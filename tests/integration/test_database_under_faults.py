"""pgbench works in PostgreSQL on ext4 on a protected disk while something fails every few seconds,
the tap included. At random checkpoints and at the end the restored disk is what a witness between
the machine and the tap has noted, byte for byte; it mounts, and the database starts with every
transaction that was acknowledged before."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from host_agent.control.client import ask, socket_of
from host_agent.control.errors import AgentNotRunning, CommandRefused
from infra.demo.machine import DISK_BYTES, Owner, Source, can_mount, make_disk
from infra.demo.mounted import Mounted
from infra.demo.processes import program, run, wait_until
from infra.demo.report import DemoFailed
from tests.integration.cut_line import line_between
from tests.integration.faults import Faults, FolderOfObjects, give_credentials, same_bytes
from tests.integration.judge import Array, Judge, Notes, alter_sector, hashes_of_file
from tests.integration.pgbench import Load, found_in
from tests.integration.place import MIB, Place, made_place
from tests.integration.site import DISK, GROUP
from tests.lanes import pick, tried
from tests.servers.faulty_s3 import FaultyS3, running_faulty_s3

#: How long it works (the variable is for a run that has to fit into what is left of a night), how
#: often something fails, and how many checkpoints are judged.
SECONDS = int(os.environ.get("HOLDFAST_DATABASE_SECONDS") or pick(100, 900, 7_200))
FAULT_SECONDS = pick(5, 10, 10)
CHECKED = pick(12, 60, 120)
_ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.invariant("I1", "I2", "I3", "I4", "I14"),
    pytest.mark.skipif(can_mount() is not None, reason=f"cannot mount: {can_mount()}"),
]


@dataclass(frozen=True)
class Cut:
    """A checkpoint: between these two moments it was made. Monotonic nanoseconds."""

    tag: str
    asked: int
    answered: int


@dataclass
class Scene:
    """The site, its machine, and what is known outside the protected disk."""

    place: Place
    store: FaultyS3
    owner: Owner
    faults: Faults
    rng: random.Random = field(default_factory=lambda: random.Random(23))
    cuts: list[Cut] = field(default_factory=list)

    @property
    def notes(self) -> Path:
        """Where the witness writes."""
        return self.place.folder / "witness"

    def witnessed(self, uri: str) -> str:
        """Put the witness in front of the tap; the URI for the machine."""
        tap = Path(uri.partition("socket=")[2])
        listen = self.place.folder / "machine.nbd"
        argv: list[str | Path] = [sys.executable, "-m", "tests.integration.witness"]
        argv += ["--listen", listen, "--tap", tap, "--export", DISK, "--log", self.notes]
        process = self.place.processes.start("witness", argv, env={"PYTHONPATH": str(_ROOT)})

        def is_there() -> bool:
            process.require()
            return listen.exists()

        wait_until("the witness listens", 30, is_there)
        return f"nbd+unix:///{DISK}?socket={listen}"

    def mark(self) -> None:
        """A checkpoint, where the agent is there and the stream records."""
        socket = socket_of(self.place.site.setup.path("agent.toml"))
        tag, asked = f"cut{len(self.cuts)}", time.monotonic_ns()
        with contextlib.suppress(AgentNotRunning, CommandRefused):
            ask(socket, {"do": "checkpoint", "group": GROUP, "tag": tag}, seconds=5)
            self.cuts.append(Cut(tag, asked, time.monotonic_ns()))


@pytest.fixture
def scene() -> Iterator[Scene]:
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-db-") as folder,
        running_faulty_s3() as store,
    ):
        work = Path(folder)
        work.chmod(0o711)  # the database's user passes through
        owner = Owner.choose()
        with made_place(work, 4096, store.url()) as place, line_between(place) as line:
            place.safe = replace(place.safe, store=f"file://{place.bucket}")
            store.objects = FolderOfObjects(place.bucket)  # type: ignore[assignment]
            place.disk.unlink()
            make_disk(place.disk, work, owner)
            give_credentials(place)
            faults = Faults(place, store, random.Random(7))
            faults.cut(line)
            faults.kill_tap()
            yield Scene(place, store, owner, faults)


class Bench:
    """Restores checkpoints and judges them, in their order, beside the load."""

    def __init__(self, scene: Scene, load: Load) -> None:
        self._scene, self._load = scene, load
        self._judge = Judge(scene.notes, hashes_of_file(scene.place.disk))
        self._waiting: queue.Queue[Cut | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self.error: BaseException | None = None
        self.judged: list[Cut] = []
        #: The last judged disk, and a judge that stays at the first checkpoint.
        self.last: Array | None = None
        self.early: tuple[Judge, Cut] | None = None
        self.later_differ = 0

    def start(self) -> None:
        self._thread.start()

    def take(self, cut: Cut) -> None:
        """One more to judge; later than those before."""
        self._waiting.put(cut)

    def finish(self) -> None:
        """Wait for the last; raise what was found wrong."""
        self._waiting.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while (cut := self._waiting.get()) is not None:
            if self.error is not None:
                continue
            try:
                self._look(cut)
            except BaseException as error:  # noqa: BLE001 - `finish` raises it
                self.error = error

    def _look(self, cut: Cut) -> None:
        began = time.monotonic()
        image = self._restored(f"tag:{cut.tag}")
        restored = time.monotonic() - began
        try:
            disk = hashes_of_file(image)
            self._judge.settle(cut.asked)
            self._compare(cut, disk)
            self._load.wait_past(cut.answered, 120)
            self.check_database(image, cut.asked, cut.answered)
        finally:
            shutil.rmtree(image.parent, ignore_errors=True)
        self.last = disk
        self.judged.append(cut)
        took = time.monotonic() - began
        print(f"{cut.tag}: right ({restored:.1f} s to restore, {took:.1f} s in all)", flush=True)

    def _compare(self, cut: Cut, disk: Array) -> None:
        verdict = self._judge.judge(disk, cut.answered)
        assert not len(verdict.wrong), f"{cut.tag}: {verdict}"
        # The controls: an older moment's disk here, and this disk at the first moment.
        if self.last is not None:
            assert len(self._judge.judge(self.last, cut.answered).wrong)
        if self.early is None:
            self.early = self._judge.copy(), cut
        else:
            early, first = self.early
            assert len(early.judge(disk, first.answered).wrong)
            self.later_differ += 1

    def _restored(self, selector: str) -> Path:
        """The disk of that moment, as soon as the store has it."""
        folder = self._scene.place.folder / f"restored-{time.monotonic_ns()}"
        end = time.monotonic() + 600
        while True:
            try:
                return self._scene.place.safe.export(selector, folder).image
            except DemoFailed:
                shutil.rmtree(folder, ignore_errors=True)
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    def at_the_end(self, now: int) -> None:
        """Nothing is in flight: the journal's disk is the notes' and the source's."""
        image = self._restored("latest-write")
        disk = hashes_of_file(image)
        self._judge.settle(now)
        verdict = self._judge.judge(disk, now)
        assert not len(verdict.wrong), str(verdict)
        assert verdict.open_sectors == 0, "the machine wrote a sector twice at once"
        assert same_bytes(image, self._scene.place.disk)
        self._control_one_bit(image, now)
        self.check_database(image, now, now)
        shutil.rmtree(image.parent, ignore_errors=True)

    def _control_one_bit(self, image: Path, now: int) -> None:
        sector = self._scene.rng.randrange(DISK_BYTES // 512)
        alter_sector(image, sector)
        assert self._judge.judge(hashes_of_file(image), now).wrong.tolist() == [sector]
        alter_sector(image, sector)

    def check_database(self, image: Path, asked: int, answered: int) -> None:
        """A sound file system, and a database with exactly what was acknowledged."""
        fsck = program("e2fsck")
        run([fsck, "-p", image], allowed=(0, 1))
        # A machine that boots has none of those processes; this one may still see the source's.
        run([program("debugfs"), "-w", "-R", "rm /srv/data/postmaster.pid", image])
        run([fsck, "-f", "-n", image])
        folder = image.parent.with_name(f"machine-{time.monotonic_ns()}")
        machine = Mounted(self._scene.place.processes, self._scene.owner, folder)
        try:
            machine.start(Source(file=image))
            code, said = machine.ask("ready", seconds=120)
            logs = sorted(self._scene.place.processes.logs.glob("database.*"))
            assert code == 0, (said, [log.read_text()[-1500:] for log in logs[-1:]])
            found = found_in(folder / "run")
        finally:
            machine.lose()
        shutil.rmtree(folder, ignore_errors=True)
        least, most = self._load.bounds(asked, answered)
        assert not found.complaints(least, most), found.complaints(least, most)
        # The control: were one more commit expected than there can be.
        assert found.complaints(tuple(count + 1 for count in most), most)


class Choice:
    """Chooses by chance, from every stretch of the run, among all checkpoints that it had."""

    def __init__(self, scene: Scene, bench: Bench) -> None:
        self._scene, self._bench = scene, bench
        self._seen = self._number = 0

    def upto(self, share: float) -> None:
        """So much of the run is over; hand on what is due."""
        fresh = self._scene.cuts[self._seen :]
        due = min(int(share * CHECKED) - self._number, len(fresh))
        if due <= 0:
            return
        for index in sorted(self._scene.rng.sample(range(len(fresh)), due)):
            self._bench.take(fresh[index])
        self._seen, self._number = len(self._scene.cuts), self._number + due


def _work(scene: Scene, load: Load, bench: Bench) -> None:
    """Faults and checkpoints at random moments, as long as pgbench works."""
    began, choice = time.monotonic(), Choice(scene, bench)
    load.start(SECONDS)
    while load.is_running and bench.error is None:
        turn = time.monotonic()
        assert turn < began + SECONDS + 180, "pgbench does not end"
        scene.mark()
        kind = scene.faults.next()
        print(f"{turn - began:.0f} s: {kind}", flush=True)
        time.sleep(scene.rng.uniform(0, 1))
        scene.mark()
        choice.upto(min(1.0, (time.monotonic() - began) / SECONDS))
        time.sleep(max(0.0, FAULT_SECONDS - (time.monotonic() - turn)))
    choice.upto(1.0)


def test_every_checkpoint_is_the_disk_of_its_moment(scene: Scene) -> None:
    place = scene.place
    folder = place.folder / "machine-source"
    machine = Mounted(place.processes, scene.owner, folder)
    place.site.start_ingest()
    place.site.start_host()
    load = Load(place.processes, place.folder / "load", folder / "run")
    bench = Bench(scene, load)
    uri = scene.witnessed(place.site.attach())
    bench.start()
    try:
        machine.start(Source(uri=uri))
        assert machine.ask("ready")[0] == 0
        load.prepare()
        place.site.wait_protected(lambda _now: None)
        _work(scene, load, bench)
        if bench.error is None:
            load.finish(120)
    finally:
        machine.lose()
        bench.finish()
    place.drain()
    place.site.stop()
    bench.at_the_end(time.monotonic_ns())
    assert not (scene.notes / "errors").read_text()
    _tell(scene, load, bench)
    assert len(scene.faults.done) >= SECONDS // FAULT_SECONDS // 2
    assert scene.faults.done.count("tap killed") >= 1
    assert len(bench.judged) >= CHECKED - 2
    assert bench.later_differ == len(bench.judged) - 1


def _tell(scene: Scene, load: Load, bench: Bench) -> None:
    commits = sum(map(len, load.times))
    notes, returns = Notes(scene.notes), (scene.notes / "returns").read_text().split()
    mib = int(notes.requests["count"].sum()) * 512 // MIB
    again = sum(map(int, returns))
    tried("faults under a database", len(scene.faults.done))
    tried("checkpoints of a database, judged byte by byte", len(bench.judged))
    tried("transactions that pgbench committed under faults", commits)
    tried("MiB that its machine wrote", mib)
    tried("requests sent again to a tap that came back", again)
    tried("seconds that pgbench worked under faults", SECONDS)
    print(
        f"{commits} transactions, {len(scene.faults.done)} faults, {len(scene.cuts)} checkpoints, "
        f"{len(bench.judged)} judged, {mib} MiB written, {len(returns) - 1} returns of the tap, "
        f"{again} requests sent again, longest silence {load.longest_silence():.1f} s",
        flush=True,
    )
