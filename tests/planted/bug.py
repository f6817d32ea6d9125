"""What a planted bug is, and how it gets into a copy of the tree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class BadBug(Exception):
    """A bug of the catalogue does not fit the sources any more."""


@dataclass(frozen=True)
class Edit:
    """One change of one file: `old` stands there exactly once."""

    path: str
    old: str
    new: str

    def check(self, root: Path) -> str:
        """The file's text; BadBug unless `old` occurs exactly once."""
        text = (root / self.path).read_text(encoding="utf-8")
        found = text.count(self.old)
        if found != 1:
            raise BadBug(f"{self.path} holds {found} times, not once: {self.old!r}")
        return text


@dataclass(frozen=True)
class Bug:
    """A mistake that somebody could make. `tests`: the smallest list that must go red."""

    name: str
    invariant: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    @property
    def is_rust(self) -> bool:
        """Whether the tap must be compiled to have it."""
        return any(edit.path.endswith(".rs") for edit in self.edits)


def bug(name: str, invariant: str, edits: tuple[str, str, str], *tests: str) -> Bug:
    """A bug of one edit: (path, old text, new text)."""
    return Bug(name, invariant, (Edit(*edits),), tests)


class Planted:
    """A context in which a copy of the tree has a bug; the copy is as before afterwards."""

    #: Later than any file was changed, and never the same twice: compiled files follow the time.
    _next_time = 2_000_000_000

    def __init__(self, root: Path, bug: Bug) -> None:
        self._root = root
        self._bug = bug
        self._before: dict[Path, str] = {}

    def __enter__(self) -> None:
        for edit in self._bug.edits:
            text = edit.check(self._root)
            path = self._root / edit.path
            self._before.setdefault(path, text)
            self._write(path, text.replace(edit.old, edit.new))

    def __exit__(self, *_: object) -> None:
        for path, text in self._before.items():
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        Planted._next_time += 1
        os.utime(path, (Planted._next_time, Planted._next_time))
