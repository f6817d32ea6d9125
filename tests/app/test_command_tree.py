"""Every command of `holdfast`, found by walking the program: what all of them have to have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from workers.cli.program import make_app

#: Processes: they run until they are told to stop, and say what happens in their logs.
_PROCESSES = {"api", "dsm", "worker", "ingest", "keys", "keys serve", "datanode"}


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its words."""
    for word, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, f"{name} {word}".strip())
    if not hasattr(group, "commands") or group.invoke_without_command:
        yield name, group


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def _tree() -> dict[str, Any]:
    return dict(commands(typer.main.get_command(make_app())))


TREE = _tree()


def test_the_walk_reaches_the_leaves() -> None:
    assert {"vpg create", "checkpoint timeline", "restore export", "up"} <= set(TREE)
    assert len(TREE) > 60


@pytest.mark.parametrize("name", sorted(set(TREE) - _PROCESSES))
def test_a_command_answers_programs_and_says_what_it_does(name: str) -> None:
    command = TREE[name]
    assert "--json" in options_of(command), name
    assert command.help, name
    for parameter in command.params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            assert parameter.help or parameter.name == "description", (name, parameter.name)


@pytest.mark.parametrize(
    "name", ["operation show", "operation list", "vpg show", "events", "alert list"]
)
def test_what_changes_can_be_watched(name: str) -> None:
    assert "--watch" in options_of(TREE[name]), name


def test_what_ends_something_asks_first() -> None:
    for name, command in TREE.items():
        if name.split()[-1] in {"delete", "revoke", "destroy-journal", "end", "drain"}:
            assert options_of(command) & {"--yes", "--confirm"}, name
