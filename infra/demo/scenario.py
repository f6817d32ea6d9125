"""The steps of the demonstration up to the loss, in the order in which they are told."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.aftermath import Aftermath, Before
from infra.demo.apart import check_apart
from infra.demo.judge import ROUND, Moment, must, traces
from infra.demo.machine import DISK_BYTES, Source
from infra.demo.recovery import file_digest
from infra.demo.report import DemoFailed, Report
from infra.demo.world import MACHINE, World

STEPS = 15
BEFORE, AFTER = "before-damage", "after-damage"
#: How long the database works between two checkpoints, seconds.
_WORK_SECONDS = 1.0


@dataclass(frozen=True)
class Options:
    """How to run. Two break it on purpose: with `late_checkpoint` the tag is set after the damage,
    with `insider` the stranger has the other tenant's token and certificate."""

    machine: str = "auto"
    late_checkpoint: bool = False
    insider: bool = False


@dataclass
class Demonstration:
    """Runs once, in a folder of its own. `cleanup` ends whatever it started."""

    folder: Path
    report: Report
    options: Options
    cleanup: ExitStack
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(self.folder, self.report, self.cleanup)
        self.acknowledged = self.world.acknowledged

    def run(self) -> None:
        """All steps; DemoFailed where one cannot be done."""
        self._prepare()
        self._start()
        self._join()
        self._protect()
        self._start_work()
        self._await_sync()
        self._make_checkpoints()
        self._damage()
        self._lose_host()
        before = Before(self.moments, BEFORE, AFTER, self.damage_at, self.acknowledged_at_damage)
        Aftermath(self.world, before, is_insider=self.options.insider).run()

    def _prepare(self) -> None:
        with self.report.step("Make a machine's disk: ext4 with PostgreSQL on it"):
            self.report.facts["machine"] = self.world.choose_machine(self.options.machine)
            disk = self.world.make_disk()
            self.report.facts["disk"] = {"bytes": DISK_BYTES, "sha256": file_digest(disk)}

    def _start(self) -> None:
        with self.report.step("Start the whole service, for two enterprises: Acme and Globex"):
            self.report.say(f"Commands run in {self.folder}")
            self.world.start_service()

    def _join(self) -> None:
        with self.report.step("Three hosts join: one of each, and one that serves both"):
            self.world.join_hosts()

    def _protect(self) -> None:
        with self.report.step("Protect their machines: a group for each"):
            self.world.protect()
            self.world.start_notes()
            self.report.say("Beside the database's disk three others are written from now on")

    def _start_work(self) -> None:
        with self.report.step("Run the database's machine from its disk; it commits transactions"):
            uri = self.world.ledger.uri()
            self.report.say(f"The machine's disk is {uri}")
            self.machine = self.world.make_machine("source")
            self.machine.start(Source(uri=uri))
            must(self.machine, "ready", "The database did not start")
            must(self.machine, "create", "The ledger could not be made")
            self.machine.work(1, self.acknowledged.note)
            self._await_commits(ROUND)
            self.report.say("Each acknowledged commit is noted outside the protected disk")

    def _await_commits(self, more: int) -> None:
        if not self.acknowledged.wait_for(self.acknowledged.last + more, 60):
            raise DemoFailed(f"The database stopped working: {self.acknowledged.complaints()}")

    def _await_sync(self) -> None:
        with self.report.step("Wait until they are protected, while they work"):
            groups = [self.world.ledger, *(one.its_group for one in self.world.written)]
            for group in groups:
                group.wait_synced(lambda now: self.report.progress(_sync_progress(now)))
                self.report.say(f"{group.name} of {group.seat.tenant.name} is in sync")
            self.report.say(f"{self.acknowledged.last} commits so far")
            seats = (self.world.acme_shared, self.world.globex_shared)
            check_apart(self.report, self.world.service, seats)

    def _make_checkpoints(self) -> None:
        with self.report.step("Make checkpoints while they work"):
            tags = ["first"]
            if not self.options.late_checkpoint:
                tags.append(BEFORE)
            for tag in tags:
                time.sleep(_WORK_SECONDS)
                self._await_commits(ROUND)
                self._checkpoint(tag)
            for one in self.world.written:
                one.take_checkpoint(BEFORE)

    def _checkpoint(self, tag: str) -> None:
        before = self.acknowledged.last
        began = time.monotonic()
        made = self.world.acme.checkpoint(MACHINE, tag)
        seconds = time.monotonic() - began
        self.moments.append(Moment(tag, made, before, self.acknowledged.last))
        self.report.say(
            f"Checkpoint '{tag}': commits 1 to {before} were acknowledged before it"
            f" (stored after {seconds:.1f} s)"
        )

    def _damage(self) -> None:
        with self.report.step("Ransomware strikes: the database's files are scrambled"):
            time.sleep(_WORK_SECONDS)
            self._await_commits(ROUND)
            shown = self.world.ledger.show()
            self.acknowledged_at_damage = self.acknowledged.last
            self.damage_at = time.time_ns()
            must(self.machine, "damage", "The damage could not be done")
            files = traces(self.machine)
            self.report.say(f"{files} files are scrambled and renamed on the protected disk")
            self.report.check("the damage reached the source", files > 0, files=files)
            self.report.facts["rpo"] = {"shown_seconds": shown["rpo_actual_seconds"]}
            if self.options.late_checkpoint:
                self._checkpoint(BEFORE)
            self._checkpoint(AFTER)

    def _lose_host(self) -> None:
        with self.report.step("Lose the host: machine, disk, agent, tap and their keys"):
            self.machine.lose()
            host = self.world.lost_host
            host.lose()
            running = [
                one.name for one in (host.agent, host.tap) if one is not None and one.is_running
            ]
            gone = not running and not self.world.disk.exists() and not host.path.exists()
            self.report.check("the disk and all that its host knew are deleted", gone)


def _sync_progress(group: dict[str, Any]) -> str:
    return f"{group['name']}: {group['sync']}, {group['backlog_bytes'] / 1e6:.0f} MB to send"
