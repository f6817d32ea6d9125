"""`python -m infra.demo`, or `make demo`: ends 0 if everything was recovered."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from infra.demo.processes import Processes, processes_that_name
from infra.demo.report import DemoFailed, Report
from infra.demo.scenario import STEPS, Demonstration, Options


class Stopped(Exception):
    """Someone asked us to stop."""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Runs the whole service for two tenants, protects a disk with a working"
        " database, damages it, loses its host, recovers it, and shows that the other tenant saw"
        " none of it.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, the result")
    parser.add_argument(
        "--machine",
        choices=("auto", "mounted", "guest"),
        default="auto",
        help="how the disk is used: mounted on this host (root), or by a QEMU guest",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder with service, key, images and logs"
    )
    parser.add_argument(
        "--late-checkpoint",
        action="store_true",
        help="a control that must fail: the checkpoint 'before' the damage is made after it",
    )
    parser.add_argument(
        "--insider",
        action="store_true",
        help="a control that must fail: the other tenant has the first one's key and certificate",
    )
    return parser.parse_args(arguments)


@contextmanager
def _asked_to_stop() -> Iterator[None]:
    """Within: a signal ends the demonstration as an error does, with everything cleaned up."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # Once only: a second Ctrl-C must not interrupt the cleaning.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _left_behind(folder: Path, processes: Processes | None) -> list[str]:
    """What of ours is still there: processes, mounts, loop devices, files."""
    left = list(processes.running()) if processes is not None else []
    left += [f"process {one}" for one in processes_that_name(folder)]
    left += [
        f"mount {line.split(' ')[1]}"
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split(" ")[1].startswith(str(folder))
    ]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_text().strip()
        except OSError:
            continue  # freed between the two looks
        if text.startswith(str(folder)):
            left.append(f"{backing.parts[3]} on {text}")
    if folder.exists():
        left.append(str(folder))
    return left


def _demonstrate(report: Report, options: Options, *, keep: bool) -> DemoFailed | None:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    # PostgreSQL refuses root, so that its user must be able to reach the mounted disk.
    folder.chmod(0o711)
    error: DemoFailed | None = None
    processes: Processes | None = None
    with ExitStack() as cleanup:
        if not keep:
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            demonstration = Demonstration(folder, report, options, cleanup)
            processes = demonstration.world.processes
            demonstration.run()
        except DemoFailed as failure:
            error = failure
        except Stopped as signalled:
            error = DemoFailed(f"Stopped by {signalled}.")
        except Exception as unforeseen:  # noqa: BLE001 - people get a sentence, whatever it was
            error = DemoFailed(f"{type(unforeseen).__name__}: {unforeseen}", "This is a defect.")
    left = _left_behind(folder, processes)
    if keep:
        left.remove(str(folder))
        report.facts["kept"] = str(folder)
        report.line(f"\nKept, as asked: {folder}")
    report.check("nothing is left running, mounted or on disk", not left, left=left)
    return error


def main(arguments: list[str] | None = None) -> int:
    """Run it and tell the result; 0 only if all was recovered and every check held."""
    given = _arguments(arguments)
    report = Report(STEPS, given.json)
    options = Options(given.machine, given.late_checkpoint, given.insider)
    report.line("Holdfast: protect a database, damage it, lose its host, bring it back")
    with _asked_to_stop():
        error = _demonstrate(report, options, keep=given.keep)
    result = report.result(error)
    report.line()
    if error is not None:
        report.line(f"Could not go on: {error.message} {error.hint}".rstrip())
    for name in result["failed"]:
        report.line(f"FAILED: {name}")
    if result["recovered"]:
        report.line(f"Recovered. {len(result['checks'])} checks held, {result['seconds']:.0f} s.")
    else:
        report.line("NOT recovered.")
    if given.json:
        print(json.dumps(result))
    return 0 if result["recovered"] else 1


if __name__ == "__main__":
    sys.exit(main())
