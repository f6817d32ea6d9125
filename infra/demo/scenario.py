"""The steps of the demonstration, in the order in which they are told."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from infra.demo.guest import Guest, fetch_kernel, make_initrd
from infra.demo.ledger import Acknowledged, LedgerReport
from infra.demo.machine import DISK_BYTES, Machine, Owner, Source, can_mount, make_disk
from infra.demo.mounted import Mounted
from infra.demo.processes import Processes, program, run
from infra.demo.recovery import Exported, Safe, file_digest, folder_digest
from infra.demo.report import DemoFailed, Report
from infra.demo.site import Site

STEPS = 11
_BEFORE, _AFTER = "before-damage", "after-damage"
#: How long the database works between two checkpoints, seconds.
_WORK_SECONDS = 1.0
_ROUND = 50


@dataclass(frozen=True)
class Options:
    """How to run. `late_checkpoint` breaks it on purpose: the tag is set after the damage."""

    machine: str = "auto"
    late_checkpoint: bool = False


@dataclass(frozen=True)
class Moment:
    """A checkpoint, and which commits had been acknowledged around it."""

    tag: str
    acknowledged_before: int
    acknowledged_after: int
    said: dict[str, Any]


@dataclass
class Demonstration:
    """Runs once, in a folder of its own. `cleanup` ends whatever it started."""

    folder: Path
    report: Report
    options: Options
    cleanup: ExitStack
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir(mode=0o700)
        self.owner = Owner.choose()
        self.processes = Processes(logs)
        self.cleanup.callback(self.processes.stop_all)
        self.bucket = self.folder / "bucket"
        self.bucket.mkdir(mode=0o700)
        self.store = f"file://{self.bucket}"

    def run(self) -> None:
        """All steps; DemoFailed where one cannot be done."""
        self._prepare()
        self._protect()
        self._start_work()
        self._await_sync()
        self._make_checkpoints()
        self._damage()
        self._lose_everything()
        self._list()
        self._recover_checkpoint()
        self._recover_last_moment()
        self._show_damage()

    # -- before the loss --------------------------------------------------------------------

    def _prepare(self) -> None:
        with self.report.step("Make a machine's disk: ext4 with PostgreSQL on it"):
            why_not = can_mount()
            way = self.options.machine
            if way == "auto":
                way = "guest" if why_not else "mounted"
            elif way == "mounted" and why_not:
                raise DemoFailed(f"Mounting is not possible here: {why_not}.", "Leave it out.")
            self.make_machine = self._makers()[way]()
            disk = self.folder / "disk.raw"
            make_disk(disk, self.folder, self.owner)
            self.site = Site(self.processes, self.folder / "site", self.store, disk)
            self.report.facts["machine"] = way
            self.report.facts["disk"] = {"bytes": DISK_BYTES, "sha256": file_digest(disk)}
            told = {
                "mounted": "The disk will be mounted on this host: nbdfuse and a loop device.",
                "guest": f"The disk will be a QEMU guest's ({why_not or 'as asked'}).",
            }
            self.report.say(told[way])

    def _makers(self) -> dict[str, Callable[[], Callable[[str], Machine]]]:
        def mounted() -> Callable[[str], Machine]:
            def make(name: str) -> Machine:
                machine = Mounted(self.processes, self.owner, self.folder / f"machine-{name}")
                self.cleanup.callback(machine.lose)
                return machine

            return make

        def guest() -> Callable[[str], Machine]:
            kernel, initrd = fetch_kernel(), self.folder / "initrd.gz"
            make_initrd(kernel, initrd)
            return lambda _name: Guest(self.processes, kernel, initrd)

        return {"mounted": mounted, "guest": guest}

    def _protect(self) -> None:
        with self.report.step("Start ingest, tap and agent, and protect the disk"):
            self.site.start_ingest()
            self.site.start_host()
            self.uri = self.site.attach()
            for one in (self.site.ingest, self.site.tap, self.site.agent):
                assert one is not None
                self.report.say(f"{one.name} runs as process {one.pid}")
            self.report.say(f"The machine's disk is {self.uri}")

    def _start_work(self) -> None:
        with self.report.step("Run the machine from it; its database commits transactions"):
            self.machine = self.make_machine("source")
            self.machine.start(Source(uri=self.uri))
            self._must("ready", "The database did not start")
            self._must("create", "The ledger could not be made")
            self.machine.work(1, self.acknowledged.note)
            self._await_commits(_ROUND)
            self.report.say("Each acknowledged commit is noted outside the protected disk")

    def _must(self, command: str, complaint: str) -> list[str]:
        code, said = self.machine.ask(command)
        if code != 0:
            raise DemoFailed(f"{complaint}: {' '.join(said)[-500:]}")
        return said

    def _await_commits(self, more: int) -> None:
        if not self.acknowledged.wait_for(self.acknowledged.last + more, 60):
            raise DemoFailed(f"The database stopped working: {self.acknowledged.complaints()}")

    def _await_sync(self) -> None:
        with self.report.step("Wait for the end of the initial sync, while it works"):
            now = self.site.wait_protected(lambda now: self.report.progress(_sync_progress(now)))
            self.report.say(f"Protected; {self.acknowledged.last} commits so far")
            self.report.facts["tap"] = (now["tap"] or {}).get("engine")

    def _make_checkpoints(self) -> None:
        with self.report.step("Make checkpoints while it works"):
            tags = ["first", "second"]
            if not self.options.late_checkpoint:
                tags.append(_BEFORE)
            for tag in tags:
                time.sleep(_WORK_SECONDS)
                self._await_commits(_ROUND)
                self._checkpoint(tag)

    def _checkpoint(self, tag: str) -> None:
        before = self.acknowledged.last
        began = time.monotonic()
        said = self.site.checkpoint(tag)
        seconds = time.monotonic() - began
        after = self.acknowledged.last
        self.moments.append(Moment(tag, before, after, said))
        self.report.say(
            f"Checkpoint '{tag}': commits 1 to {before} were acknowledged before it"
            f" (stored after {seconds:.1f} s)"
        )

    def _damage(self) -> None:
        with self.report.step("Ransomware strikes: the database's files are scrambled"):
            time.sleep(_WORK_SECONDS)
            self._await_commits(_ROUND)
            shown = self.site.status()
            self.acknowledged_at_damage = self.acknowledged.last
            self.damage_at = time.time_ns()
            self._must("damage", "The damage could not be done")
            traces = int(self._must("traces", "The damage cannot be seen")[-1])
            self.report.say(f"{traces} files are scrambled and renamed on the protected disk")
            self.report.check("the damage reached the source", traces > 0, files=traces)
            self.report.facts["rpo"] = {"shown_seconds": shown.get("rpo_seconds")}
            if self.options.late_checkpoint:
                self._checkpoint(_BEFORE)
            self._checkpoint(_AFTER)

    def _lose_everything(self) -> None:
        with self.report.step("Lose the site: machine, disk, agent, tap, ingest and their keys"):
            key = self.folder / "tenant.key"
            shutil.copy(self.site.setup.path("tenant.key"), key)
            self.machine.lose()
            self.site.stop()
            self.report.check("nothing of the site runs", not self.processes.running())
            self.site.delete()
            gone = not self.site.disk.exists() and not self.site.setup.directory.exists()
            self.report.check("the disk and all that the site knew are deleted", gone)
            objects, size, self.bucket_digest = folder_digest(self.bucket)
            self.report.facts["journal"] = {"objects": objects, "bytes": size}
            self.report.say(f"Left: {objects} objects ({size / 1e6:.1f} MB) and {key.name}")
            self.safe = Safe(self.store, key, self.processes)

    # -- after the loss ---------------------------------------------------------------------

    def _list(self) -> None:
        with self.report.step("List what can be recovered, from the bucket and the key alone"):
            found = str(self.safe.points())
            self.report.facts["checkpoints"] = [
                {
                    "tag": one.tag,
                    "seq": one.said["seq"],
                    "acknowledged_before": one.acknowledged_before,
                    "acknowledged_after": one.acknowledged_after,
                }
                for one in self.moments
            ]
            for moment in self.moments:
                self.report.check(f"checkpoint '{moment.tag}' is offered", moment.tag in found)

    def _recover_checkpoint(self) -> None:
        moment = next(one for one in self.moments if one.tag == _BEFORE)
        with self.report.step(f"Export the disk of checkpoint '{_BEFORE}'"):
            exported = self.safe.export(f"tag:{_BEFORE}", self.folder / "export")
            digest = file_digest(exported.image)
            self.report.say(f"Written in {exported.seconds:.1f} s: {exported.image.name}")
            self._check_digest(exported)
            self._check_file_system(exported.image)
            self.machine = self.make_machine("exported")
            self.machine.start(Source(file=exported.image))
            found = self._check_database(moment.acknowledged_before)
            if found is not None:
                self._check_nothing_later(found, moment)
                self._check_orderly_end()
            self.machine.lose()
            self.report.facts["export"] = {
                "selector": f"tag:{_BEFORE}",
                "sha256": digest,
                "seconds": round(exported.seconds, 2),
                "transactions": found.last if found else None,
                "acknowledged_before_checkpoint": moment.acknowledged_before,
            }

    def _check_digest(self, exported: Exported) -> None:
        (told,) = exported.said["disks"]
        found = f"blake3:{blake3(exported.image.read_bytes()).hexdigest()}"
        self.report.check(
            "the image is what the export verified", told["digest"] in (found, found[7:])
        )

    def _check_file_system(self, image: Path) -> None:
        fsck = program("e2fsck")
        # What a crashed machine does at its next start; then nothing may be left to repair.
        replayed = run([fsck, "-p", image], allowed=range(256)).returncode
        clean = run([fsck, "-f", "-n", image], allowed=range(256)).returncode
        self.report.check(
            "the file system is sound", replayed in (0, 1) and clean == 0, e2fsck=clean
        )

    def _check_database(self, at_least: int) -> LedgerReport | None:
        """Judge the recovered database; None if it does not even start."""
        code, said = self.machine.ask("traces")
        traces = int(said[-1]) if code == 0 else -1
        self.report.check("none of the damage is there", traces == 0, files=traces)
        code, _ = self.machine.ask("ready")
        if not self.report.check("the database starts", code == 0):
            return None
        found = self._read_ledger()
        self.report.check(
            "the ledger is whole: transactions 1 to its last, bit for bit, balances right",
            found.is_prefix,
            transactions=found.last,
            digest=found.digest,
        )
        self.report.check(
            f"nothing committed before is missing: {at_least} were, {found.last} are there",
            found.last >= at_least,
            acknowledged=at_least,
            found=found.last,
        )
        self.report.facts["database"] = f"PostgreSQL {found.version}"
        return found

    def _read_ledger(self) -> LedgerReport:
        said = self._must("report", "The ledger cannot be read")
        try:
            return LedgerReport.parse(said[-1])
        except (ValueError, TypeError, IndexError):
            raise DemoFailed(f"The ledger's report is none: {said}") from None

    def _check_nothing_later(self, found: LedgerReport, moment: Moment) -> None:
        # One session: at most one transaction was under way when the marker was set.
        self.report.check(
            "nothing committed after the checkpoint is there",
            found.last <= moment.acknowledged_after + 1,
            acknowledged=moment.acknowledged_after,
            found=found.last,
        )

    def _check_orderly_end(self) -> None:
        try:
            self.machine.stop()
        except DemoFailed as error:
            self.report.check(f"every page has its checksum: {error.message}", False)
        else:
            self.report.check("the database stops in order, every page has its checksum", True)

    def _recover_last_moment(self) -> None:
        moment = datetime.fromtimestamp(self.damage_at / 1e9, UTC).strftime("%H:%M:%S.%f")
        with self.report.step(f"Serve the disk as it was when the damage began ({moment})"):
            served = self.safe.serve(f"time:{_rfc3339(self.damage_at)}", self.folder / "served")
            self.report.say(f"Ready after {served.seconds:.1f} s: {served.uri}")
            self.machine = self.make_machine("served")
            self.machine.start(Source(uri=served.uri))
            found = self._check_database(self.acknowledged_at_damage)
            if found is not None:
                self._check_goes_on(found)
                self._check_orderly_end()
            self.machine.lose()
            served.process.stop()
            self.report.facts["serve"] = {
                "selector": f"time:{_rfc3339(self.damage_at)}",
                "ready_seconds": round(served.seconds, 2),
                "transactions": found.last if found else None,
                "acknowledged_before_damage": self.acknowledged_at_damage,
            }
            self._tell_rpo(found)

    def _check_goes_on(self, found: LedgerReport) -> None:
        went_on = Acknowledged()
        self.machine.work(found.last + 1, went_on.note)
        worked = went_on.wait_for(found.last + _ROUND, 60)
        now = self._read_ledger()
        self.report.check(
            "the recovered database takes new work",
            worked and now.is_prefix and now.last >= found.last + _ROUND,
            transactions=now.last,
        )

    def _tell_rpo(self, found: LedgerReport | None) -> None:
        marker = next(one for one in self.moments if one.tag == _BEFORE)
        lost = self.acknowledged_at_damage - found.last if found else None
        rpo = self.report.facts["rpo"]
        rpo["lost_at_the_moment_of_damage"] = None if lost is None else max(0, lost)
        rpo["after_checkpoint"] = self.acknowledged_at_damage - marker.acknowledged_before
        self.report.say(
            f"RPO shown before the damage: {rpo['shown_seconds']} s. Commits lost by going back to"
            f" the damage's first instant: {rpo['lost_at_the_moment_of_damage']}; by going back to"
            f" the checkpoint: at most {rpo['after_checkpoint']}"
        )

    def _show_damage(self) -> None:
        with self.report.step(f"Control: '{_AFTER}' does contain the damage"):
            served = self.safe.serve(f"tag:{_AFTER}", self.folder / "damaged")
            self.machine = self.make_machine("control")
            self.machine.start(Source(uri=served.uri))
            code, said = self.machine.ask("traces")
            traces = int(said[-1]) if code == 0 else -1
            code, _ = self.machine.ask("ready")
            self.report.check("after the damage, the damage is there", traces > 0, files=traces)
            self.report.check("after the damage, the database does not start", code != 0)
            self.machine.lose()
            served.process.stop()
            unchanged = folder_digest(self.bucket)[2] == self.bucket_digest
            self.report.check("recovering wrote nothing into the bucket", unchanged)


def _sync_progress(status: dict[str, Any]) -> str:
    sync = status["sync"]
    if not sync or not sync["total_bytes"]:
        return str(status["state"])
    done = sync["total_bytes"] - sync["remaining_bytes"]
    return f"{done / 1e6:.0f} of {sync['total_bytes'] / 1e6:.0f} MB"


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
