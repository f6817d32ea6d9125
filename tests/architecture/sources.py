"""Which files the tidy rules look at, and how they are read."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the tree that git tracks or would track, relative to the root."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = {Path(name) for name in listing.stdout.split("\0") if name}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def with_suffix(*suffixes: str) -> list[Path]:
    """The tracked files whose names end so."""
    return [path for path in tracked() if path.suffix in suffixes]


def text_of(path: Path) -> str:
    """A tracked file's text."""
    return (ROOT / path).read_text(encoding="utf-8")


def texts() -> Iterator[tuple[Path, str]]:
    """Every tracked file that is text, with its text."""
    for path in tracked():
        content = (ROOT / path).read_bytes()
        if b"\0" in content:
            continue
        try:
            yield path, content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # golden files are bytes


def tree_of(path: Path) -> ast.Module:
    """A tracked Python file, parsed."""
    return ast.parse(text_of(path), filename=str(path))
