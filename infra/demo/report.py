"""What the demonstration tells: numbered steps for people, one JSON object for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO


class DemoFailed(Exception):
    """The demonstration cannot go on. `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass
class Report:
    """Collects steps, checks and facts, and says them as they come.

    With `as_json`, what people read goes to standard error, so that standard output carries
    the result alone.
    """

    steps_total: int
    as_json: bool
    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self.as_json else sys.stdout

    def line(self, text: str = "") -> None:
        """One line for people."""
        print(text, file=self._out, flush=True)

    def say(self, text: str) -> None:
        """One line within a step."""
        self.line(f"      {text}")

    def progress(self, text: str) -> None:
        """A line that the next one replaces, on a terminal; nothing elsewhere."""
        if self._out.isatty():
            print(f"\r\x1b[K      {text}", end="\r", file=self._out, flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A numbered step; its time is printed when it ends well."""
        number = len(self.steps) + 1
        self.line(f"\n[{number}/{self.steps_total}] {title}")
        entry: dict[str, Any] = {"step": title, "seconds": None}
        self.steps.append(entry)
        began = time.monotonic()
        yield
        entry["seconds"] = round(time.monotonic() - began, 2)
        self.line(f"      ({entry['seconds']:.1f} s)")

    def check(self, name: str, passed: bool, **facts: Any) -> bool:
        """Something that must be so."""
        self.checks.append({"check": name, "passed": passed, **facts})
        self.line(f"      {'ok  ' if passed else 'FAIL'}  {name}")
        return passed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that did not hold."""
        return [check["check"] for check in self.checks if not check["passed"]]

    def result(self, error: DemoFailed | None) -> dict[str, Any]:
        """The whole outcome. Recovered means: every check was made and held."""
        whole = error is None and len(self.steps) == self.steps_total
        content: dict[str, Any] = {"recovered": whole and bool(self.checks) and not self.failed}
        if error is not None:
            content["error"] = {"message": error.message, "hint": error.hint}
        return {
            **content,
            "seconds": round(time.monotonic() - self._began, 2),
            **self.facts,
            "failed": self.failed,
            "checks": self.checks,
            "steps": self.steps,
        }
