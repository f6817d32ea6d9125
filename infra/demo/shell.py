"""The product's commands, run in one folder as people type them, and shown before they run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, Processes, run, tool, wait_until
from infra.demo.report import DemoFailed, Report

_SECONDS = 180.0


class Shell:
    """Words begin with the name of a program of ours; paths may be relative to the folder."""

    def __init__(self, folder: Path, processes: Processes, report: Report) -> None:
        self.folder = folder
        self._processes = processes
        self._report = report
        path = os.pathsep.join([str(tool("holdfast").parent), os.environ.get("PATH", os.defpath)])
        # Profiles of whoever runs this are neither used nor changed.
        self._environment = {"PATH": path, "XDG_CONFIG_HOME": str(folder), "HOLDFAST_PROFILE": ""}

    def run(self, *words: str) -> str:
        """Run it to its end, show it; what it said. DemoFailed."""
        self._show(words)
        return self._run(words)

    def ask(self, *words: str) -> dict[str, Any]:
        """The same with `--json`; the object that it printed."""
        self._show((*words, "--json"))
        return self.peek(*words)

    def peek(self, *words: str) -> dict[str, Any]:
        """The same, not shown: for what is asked again and again."""
        text = self._run((*words, "--json"))
        try:
            content = json.loads(text)
        except ValueError:
            raise DemoFailed(f"{shlex.join(words)} printed no JSON: {text[:300]!r}") from None
        if not isinstance(content, dict):
            raise DemoFailed(f"{shlex.join(words)} printed JSON that is no object.")
        return content

    def wait(self, *words: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until the answer is such; it is shown once. DemoFailed."""
        self._show((*words, "--json"))
        last: dict[str, Any] = {}

        def is_so() -> bool:
            last.clear()
            last.update(self.peek(*words))
            return until(last)

        wait_until(shlex.join(words), _SECONDS, is_so)
        return last

    def start(self, name: str, *words: str, pipes: bool = False) -> Process:
        """Start what runs until it is stopped."""
        self._show((*words, "&"))
        argv: list[str | Path] = [tool(words[0]), *words[1:]]
        return self._processes.start(
            name, argv, env=self._environment, cwd=self.folder, pipes=pipes
        )

    def _show(self, words: tuple[str, ...]) -> None:
        self._report.say("$ " + " ".join(one if one == "&" else shlex.quote(one) for one in words))

    def _run(self, words: tuple[str, ...]) -> str:
        argv: list[str | Path] = [tool(words[0]), *words[1:]]
        return run(argv, seconds=_SECONDS, env=self._environment, cwd=self.folder).stdout
