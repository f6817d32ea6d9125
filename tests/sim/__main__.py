"""`python -m tests.sim run | replay`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.sim.options import Options, draw
from tests.sim.report import Report, Way, regressions, run_options, run_seeds, save, show
from tests.sim.run import environment, run_one


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end) if end else int(first) + 1)


def _progress(done: int, failed: int) -> None:
    if done % 50 == 0:
        print(f"\r{done} schedules, {failed} failed", end="", file=sys.stderr, flush=True)


def _run(args: argparse.Namespace) -> int:
    way = Way(args.procs, args.failures_max, shrinks=True, progress=_progress)
    report: Report = run_options(regressions(), way=Way())
    if report.is_good:
        report = run_seeds(_seeds(args.seeds), way=way)
    print(file=sys.stderr)
    for failure in report.failures:
        print(f"saved {save(failure)}", file=sys.stderr)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    print("\n".join(show(report)))
    return 0 if report.is_good else 1


def _replay(args: argparse.Namespace) -> int:
    path = Path(args.seed)
    if path.suffix == ".json":
        options = Options.of(json.loads(path.read_text())["smallest"])
    else:
        options = draw(int(args.seed))
    with environment() as keys:
        outcome = run_one(options, keys, args.trace)
    print(json.dumps(options.as_dict()))
    print(f"digest {outcome.digest}, {outcome.seconds:.1f} simulated seconds")
    print(outcome.failure or "every invariant held")
    return 0 if outcome.failure is None else 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tests.sim", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="run the schedules of seeds; regressions first")
    run.add_argument("--seeds", default="0:2000", help="FIRST:END")
    run.add_argument("--procs", type=int, default=2)
    run.add_argument("--failures-max", type=int, default=5)
    run.add_argument("--json", help="write the report here")
    run.set_defaults(do=_run)
    replay = verbs.add_parser("replay", help="one schedule again")
    replay.add_argument("seed", help="a seed, or a file of tests/sim/seeds")
    replay.add_argument("--trace", action="store_true", help="print what happens")
    replay.set_defaults(do=_replay)
    args = parser.parse_args()
    code: int = args.do(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
