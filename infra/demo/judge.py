"""What is demanded of a recovered machine: its file system, its database, every committed row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.demo.ledger import Acknowledged, LedgerReport
from infra.demo.machine import Machine
from infra.demo.processes import program, run
from infra.demo.report import DemoFailed, Report

#: Commits that show that a database works.
ROUND = 50


@dataclass(frozen=True)
class Moment:
    """A checkpoint, and which commits had been acknowledged around it."""

    tag: str
    id: str
    acknowledged_before: int
    acknowledged_after: int


def must(machine: Machine, command: str, complaint: str) -> list[str]:
    """What the machine says to a command that has to succeed; DemoFailed."""
    code, said = machine.ask(command)
    if code != 0:
        raise DemoFailed(f"{complaint}: {' '.join(said)[-500:]}")
    return said


def traces(machine: Machine) -> int:
    """How many files the damage left; -1 if nobody can say."""
    code, said = machine.ask("traces")
    return int(said[-1]) if code == 0 else -1


class Judge:
    """Makes the checks of one recovered machine."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def file_system(self, image: Path) -> None:
        """It has to be sound after what a crashed machine does at its next start."""
        fsck = program("e2fsck")
        replayed = run([fsck, "-p", image], allowed=range(256)).returncode
        clean = run([fsck, "-f", "-n", image], allowed=range(256)).returncode
        self._report.check(
            "the file system is sound", replayed in (0, 1) and clean == 0, e2fsck=clean
        )

    def database(self, machine: Machine, at_least: int) -> LedgerReport | None:
        """Undamaged, and every commit up to `at_least` is there; None if it does not start."""
        files = traces(machine)
        self._report.check("none of the damage is there", files == 0, files=files)
        code, _ = machine.ask("ready")
        if not self._report.check("the database starts", code == 0):
            return None
        found = read_ledger(machine)
        self._report.check(
            "the ledger is whole: transactions 1 to its last, bit for bit, balances right",
            found.is_prefix,
            transactions=found.last,
            digest=found.digest,
        )
        self._report.check(
            f"nothing committed before is missing: {at_least} were, {found.last} are there",
            found.last >= at_least,
            acknowledged=at_least,
            found=found.last,
        )
        self._report.facts["database"] = f"PostgreSQL {found.version}"
        return found

    def nothing_later(self, found: LedgerReport, moment: Moment) -> None:
        """One session: at most one transaction was under way when the marker was set."""
        self._report.check(
            "nothing committed after the checkpoint is there",
            found.last <= moment.acknowledged_after + 1,
            acknowledged=moment.acknowledged_after,
            found=found.last,
        )

    def goes_on(self, machine: Machine, found: LedgerReport) -> None:
        """It commits again."""
        went_on = Acknowledged()
        machine.work(found.last + 1, went_on.note)
        worked = went_on.wait_for(found.last + ROUND, 60)
        now = read_ledger(machine)
        self._report.check(
            "the recovered database takes new work",
            worked and now.is_prefix and now.last >= found.last + ROUND,
            transactions=now.last,
        )

    def orderly_end(self, machine: Machine) -> None:
        """It stops in order, and every page has its checksum."""
        try:
            machine.stop()
        except DemoFailed as error:
            self._report.check(f"every page has its checksum: {error.message}", False)
        else:
            self._report.check("the database stops in order, every page has its checksum", True)


def read_ledger(machine: Machine) -> LedgerReport:
    """All that the database says of its ledger; DemoFailed."""
    said = must(machine, "report", "The ledger cannot be read")
    try:
        return LedgerReport.parse(said[-1])
    except (ValueError, TypeError, IndexError):
        raise DemoFailed(f"The ledger's report is none: {said}") from None
