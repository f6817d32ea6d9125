"""All benchmarks: the table, and a file of their results. `python -m tests.bench --output FILE`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import (
    api,
    cold,
    dsm,
    fold,
    footprint,
    latency,
    pipeline,
    pitmap,
    restore,
    resync,
    tap,
    up,
)
from tests.bench.cases import Case, end_in_order, significant, tell
from tests.bench.processes import BenchFailed

BENCHES: dict[str, Callable[[], Iterator[Case]]] = {
    "tap": tap.cases,
    "pipeline": pipeline.cases,
    "footprint": footprint.cases,
    "pitmap": pitmap.cases,
    "fold": fold.cases,
    "restore": restore.cases,
    "resync": resync.cases,
    "cold": cold.cases,
    "latency": latency.cases,
    "dsm": dsm.cases,
    "api": api.cases,
    "up": up.cases,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure every figure.")
    parser.add_argument("names", nargs="*", help=f"{', '.join(BENCHES)}; all of them by default")
    parser.add_argument("--output", type=Path, help="write the results to this file, as JSON")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(BENCHES)}")
    return given


def conditions() -> dict[str, object]:
    """The machine, as far as figures depend on it."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "kernel": platform.release(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def table_of(cases: list[Case]) -> Table:
    """All cases, those that miss their goal in red."""
    table = Table(title="Holdfast beside its peers")
    for name in ("case", "unit", "ours", "peer", "theirs", "ratio", "goal", "met"):
        table.add_column(name, justify="right" if name in {"ours", "theirs", "ratio"} else "left")
    for case in cases:
        sign = "≥" if case.better == "higher" else "≤"
        goal = "" if case.goal is None else f"{sign} {case.goal}"
        met = {None: "", True: "[green]yes", False: "[red]no"}[case.met]
        numbers = [f"{significant(value):,g}" for value in (case.ours, case.peer, case.ratio)]
        ours, peer, ratio = numbers
        name = f"{case.bench} {case.case}"
        table.add_row(name, case.unit, ours, case.peer_name, peer, ratio, goal, met)
    return table


def main() -> int:
    """Ends 0 when everything was measured, whatever the figures say, else 2."""
    given = _arguments()
    end_in_order()
    where = conditions()
    cases: list[Case] = []
    failed = []
    for name in given.names or BENCHES:
        begin = time.monotonic()
        try:
            for case in BENCHES[name]():
                cases += tell([case], sys.stderr)
        except BenchFailed as error:
            failed.append(name)
            print(f"{name} could not be measured: {error}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    if given.output is not None:
        content = {"conditions": where, "failed": failed, "cases": [c.as_dict() for c in cases]}
        given.output.write_text(json.dumps(content, indent=2) + "\n")
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(cases))
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
