"""Runs the machine on this host, as root: its disk mounted, its database a process here."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from infra.demo.machine import Owner, Source
from infra.demo.mount import Mount
from infra.demo.processes import Process, Processes, run
from infra.demo.report import DemoFailed


class Mounted:
    """The machine without a machine: the same files, the same database, no guest."""

    way = "mounted"

    def __init__(self, processes: Processes, owner: Owner, folder: Path) -> None:
        self._processes = processes
        self._owner = owner
        self._mount = Mount(processes, folder)
        self._run = owner.give(folder / "run")
        self._server: Process | None = None
        self._workload: Process | None = None

    def start(self, source: Source) -> None:
        self._mount.enter(source)
        self._server = self._processes.start(
            "database", self._command("serve"), env=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        return {"ROOT": str(self._mount.root), "RUN": str(self._run)}

    def _command(self, *words: str) -> list[str]:
        return self._owner.command("/bin/sh", self._mount.root / "srv/ledger.sh", *words)

    def ask(self, command: str, seconds: float = 180) -> tuple[int, list[str]]:
        pairs = [f"{name}={value}" for name, value in self._environment().items()]
        argv = ["env", *pairs, *self._command(*command.split())]
        done = run(argv, seconds=seconds, allowed=range(256))
        return done.returncode, (done.stdout + done.stderr).splitlines()

    def work(self, first: int, on_line: Callable[[str], object]) -> None:
        self._workload = self._processes.start(
            "workload", self._command("work", str(first)), env=self._environment(), pipes=True
        )
        stdout = self._workload.popen.stdout
        assert stdout is not None

        def read() -> None:
            with contextlib.suppress(ValueError):
                for line in stdout:
                    on_line(line.decode(errors="replace").rstrip())

        threading.Thread(target=read, daemon=True).start()

    def stop(self) -> None:
        code, said = self.ask("stop")
        if code != 0:
            raise DemoFailed(f"The database did not stop in order: {' '.join(said)}")
        self.lose()

    def lose(self) -> None:
        if self._server is not None:
            # Immediate: no orderly end, but its shared memory is given back.
            self._server.stop(signal.SIGQUIT)
        if self._workload is not None:
            self._workload.stop()
        self._mount.leave()
