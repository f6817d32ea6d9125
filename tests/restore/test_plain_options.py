"""A command line that is read without typer means what typer makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from workers.cli.options import ExportOptions, ServeOptions, command, read_plain

_NEEDED = ["--store", "file:///s", "--tenant", "acme", "--key-file", "/k", "--at", "latest"]
_SERVE = [*_NEEDED, "--socket-dir", "sockets"]


def by_typer(options: type[Any], words: list[str]) -> Any:
    found: list[Any] = []
    app = typer.Typer()
    command(app, "it", options)(found.append)
    result = CliRunner().invoke(app, words)
    return found[0] if result.exit_code == 0 and found else None


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--json"],
        ["--no-fill"],
        ["--fill", "--group", "web", "--host", "host 1"],
        ["--map-cache", "maps/../maps"],
    ],
)
def test_plain_words_mean_the_same(more: list[str]) -> None:
    for words in ([*_SERVE, *more], [*more, *_SERVE]):
        options = read_plain(ServeOptions, words)
        assert options is not None
        assert options == by_typer(ServeOptions, words)
        assert isinstance(options.key_file, Path)


def test_flags_and_defaults_of_another_command() -> None:
    words = [*_NEEDED, "--output", "out", "--digest", "--force"]
    assert read_plain(ExportOptions, words) == by_typer(ExportOptions, words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        _SERVE[2:],
        [*_SERVE, "--help"],
        [*_SERVE, "more"],
        [*_SERVE, "--unknown", "x"],
        [*_SERVE, "--group"],
        [*_SERVE, "--group", "--json"],
        [*_SERVE, "--group", ""],
        [*_SERVE, "--group=web"],
        [*_SERVE, "--json", "--json"],
        [*_SERVE, "--fill", "--no-fill"],
        [*_SERVE, "--at", "latest"],
        [*_SERVE, "--no-json"],
    ],
)
def test_anything_else_is_left_to_typer(words: list[str]) -> None:
    assert read_plain(ServeOptions, words) is None
