"""From the marks in the test files to a list of tests for each invariant."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

#: What must hold in every test, in a few words each.
INVARIANTS = {
    "I1": "transparency: a guest sees exactly what its bare disk would show",
    "I2": "no acknowledged loss: what is stored is in every later restore",
    "I3": "exact restore: a listed checkpoint equals the model, byte for byte",
    "I4": "prefix order: an image is a prefix of what was applied",
    "I5": "a cut over hosts keeps cause before effect",
    "I6": "a guest's I/O is bounded, whatever else is dead",
    "I7": "single writer: a fenced writer's bytes never appear",
    "I8": "one primary, or a split that is shown",
    "I9": "tenants see nothing of each other",
    "I10": "corruption is detected, never guessed over",
    "I11": "status is truthful, never optimistic",
    "I12": "memory, files and connections are bounded",
    "I13": "locked objects cannot be changed",
    "I14": "with faults healed, it recovers by itself",
    "I15": "collection removes nothing that is reachable",
    "I16": "no key and nonce are used twice",
}

#: What of an invariant no test holds, because the software does not have it yet.
LATER = {
    "I5": "cuts over several hosts that the manager's engine asks for; the tap's hold is tested",
    "I8": "the two sides of a failover; that one machine's disk has one writer is tested",
    "I13": "locked buckets",
}

#: Those that today's software must hold, wholly or in part.
REQUIRED = tuple(invariant for invariant in INVARIANTS if invariant != "I13")

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Named:
    """A test, as pytest would be told it, and the invariants that it names."""

    test: str
    invariants: tuple[str, ...]


def named_tests(path: str, tree: ast.Module) -> Iterator[Named]:
    """The tests of one file with what they, their class or their file name."""
    of_file: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and "pytestmark" in map(ast.unparse, node.targets):
            of_file |= set(_named_in(node.value))
    yield from _walk(path, tree.body, of_file)


def _walk(prefix: str, body: list[ast.stmt], inherited: set[str]) -> Iterator[Named]:
    for node in body:
        if not isinstance(node, _Definition):
            continue
        found = set(inherited)
        for decorator in node.decorator_list:
            found |= set(_named_in(decorator))
        name = f"{prefix}::{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _walk(name, node.body, found)
        elif node.name.startswith("test"):
            yield Named(name, tuple(sorted(found, key=lambda one: int(one[1:]))))


def _named_in(node: ast.AST) -> Iterator[str]:
    """What every `mark.invariant(...)` inside an expression names."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("mark.invariant"):
            continue
        for argument in call.args:
            if not isinstance(argument, ast.Constant) or argument.value not in INVARIANTS:
                raise ValueError(f"line {call.lineno}: {ast.unparse(argument)} is no invariant")
            yield str(argument.value)


def by_invariant(tests: list[Named]) -> dict[str, list[str]]:
    """Every invariant's tests, in the order of the files."""
    return {
        invariant: [one.test for one in tests if invariant in one.invariants]
        for invariant in INVARIANTS
    }


def missing(listing: dict[str, list[str]]) -> list[str]:
    """The required invariants that no test names."""
    return [invariant for invariant in REQUIRED if not listing[invariant]]
