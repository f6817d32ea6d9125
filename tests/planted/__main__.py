"""Plant every bug of the catalogue; ends 0 only if the tests found each of them."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.planted.bug import BadBug, Bug
from tests.planted.catalogue import BUGS
from tests.planted.runner import Outcome, check_unplanted, plant_all, trees


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    parser.add_argument("--list", action="store_true", help="only name the bugs")
    parser.add_argument("--only", metavar="WORD", help="bugs whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (default: 2)")
    parser.add_argument("--kind", choices=["python", "rust", "all"], default="all")
    return parser.parse_args()


def _wanted(arguments: argparse.Namespace) -> list[Bug]:
    chosen = [bug for bug in BUGS if (arguments.only or "") in bug.name]
    if arguments.kind != "all":
        chosen = [bug for bug in chosen if bug.is_rust == (arguments.kind == "rust")]
    return sorted(chosen, key=lambda bug: bug.is_rust)


def _line(outcome: Outcome) -> str:
    said = ", ".join(outcome.caught_by) if outcome.is_caught else "NOT CAUGHT"
    if outcome.trouble:
        said += f": {outcome.trouble}"
    return f"{outcome.bug.invariant:4} {outcome.bug.name:52.52} {outcome.seconds:6.1f} s  {said}"


def _as_json(outcomes: list[Outcome], seconds: float) -> str:
    rows = [
        {
            "bug": one.bug.name,
            "invariant": one.bug.invariant,
            "caught": one.is_caught,
            "caught_by": one.caught_by,
            "seconds": round(one.seconds, 1),
            "trouble": one.trouble,
        }
        for one in outcomes
    ]
    caught = sum(one.is_caught for one in outcomes)
    whole = {"planted": len(rows), "caught": caught, "seconds": round(seconds, 1), "bugs": rows}
    return json.dumps(whole, indent=1)


def main() -> int:
    """The command."""
    arguments = _arguments()
    bugs = _wanted(arguments)
    if arguments.list:
        for bug in bugs:
            print(f"{bug.invariant:4} {bug.name}")
        return 0
    began = time.monotonic()

    def tell(text: str) -> None:
        print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    with trees(1) as free:
        before = check_unplanted(free.get(), bugs, arguments.jobs)
    if before.failed or before.trouble or not before.passed:
        tell(f"Not green without a bug: {', '.join(before.failed)} {before.trouble}")
        return 2
    tell(f"Without a bug: {before.passed} tests pass ({time.monotonic() - began:.0f} s).")
    try:
        outcomes = plant_all(bugs, arguments.jobs, lambda outcome: tell(_line(outcome)))
    except BadBug as error:
        tell(f"The catalogue does not fit the sources: {error}")
        return 2
    seconds = time.monotonic() - began
    caught = sum(one.is_caught for one in outcomes)
    if arguments.json:
        print(_as_json(outcomes, seconds))
    tell(f"{caught} of {len(outcomes)} planted bugs caught, {seconds:.0f} s.")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
