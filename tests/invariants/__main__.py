"""Print each invariant with the tests that name it; ends 1 if a required one has none."""

from __future__ import annotations

import argparse
import json
import sys

from tests.architecture import sources
from tests.invariants.listing import INVARIANTS, LATER, Named, by_invariant, missing, named_tests
from tests.invariants.requirements import REQUIREMENTS


def all_tests() -> list[Named]:
    """Every test of the tree."""
    return [
        named
        for path in sources.with_suffix(".py")
        if path.parts[0] == "tests" and path.name.startswith("test_")
        for named in named_tests(str(path), sources.tree_of(path))
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.invariants", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object instead of text")
    parser.add_argument("--short", action="store_true", help="counts alone")
    wanted = parser.parse_args()
    listing = by_invariant(all_tests())
    if wanted.json:
        print(json.dumps(listing, indent=1))
    else:
        for invariant, text in INVARIANTS.items():
            later = f"  (not yet: {LATER[invariant]})" if invariant in LATER else ""
            print(f"{invariant:4} {len(listing[invariant]):3} tests  {text}{later}")
            for test in () if wanted.short else listing[invariant]:
                print(f"              {test}")
        for name, one in REQUIREMENTS.items():
            later = f"  (not yet: {one.later})" if one.later else ""
            print(f"{name:4} {len(one.tests):3} tests  {one.text}{later}")
            for test in () if wanted.short else one.tests:
                print(f"              {test}")
    lacking = missing(listing)
    if lacking:
        print(f"No test names {', '.join(lacking)}.", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
