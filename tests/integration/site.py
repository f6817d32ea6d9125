"""Both sides on one machine, by configuration files: ingest, the tap, the agent, and the disk that
they protect."""

from __future__ import annotations

import atexit
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.demo.processes import (
    Process,
    Processes,
    free_port,
    json_output,
    run,
    tool,
    wait_until,
)
from infra.demo.report import DemoFailed
from infra.dev_keys import DevSetup, write_dev_setup

TENANT, GROUP, DISK = "acme", "demo", "disk"
_START_SECONDS = 90.0
_SYNC_SECONDS = 120.0


class Site:
    """The protected site and its ingest. Everything of theirs lies in one folder."""

    def __init__(self, processes: Processes, folder: Path, store: str, disk: Path) -> None:
        self._processes = processes
        self._folder = folder
        self.disk = disk
        self.setup = DevSetup(folder, tenant=TENANT, group=GROUP, port=free_port(), store=store)
        write_dev_setup(self.setup, datetime.now(UTC))
        # We start the tap ourselves, so that we know all that has to end.
        agent_toml = self.setup.path("agent.toml")
        agent_toml.write_text(agent_toml.read_text().replace("autostart = true\n", ""))
        # Rings lie in memory and outlive their tap; nobody needs ours when this process ends.
        self._rings = Path(tempfile.mkdtemp(prefix="holdfast-", dir="/dev/shm"))
        atexit.register(self.drop_rings)
        self.ingest: Process | None = None
        self.tap: Process | None = None
        self.agent: Process | None = None

    def start_ingest(self, env: dict[str, str] | None = None) -> None:
        """Start ingest and wait until it listens."""
        argv: list[str | Path] = [
            tool("holdfast"),
            "ingest",
            "--config",
            self.setup.path("ingest.toml"),
        ]
        self.ingest = self._processes.start("ingest", argv, env=env)
        self._wait(self.ingest, "ingest listens", self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.setup.port)) == 0

    def start_host(self) -> None:
        """Start the tap, then the agent."""
        self.start_tap()
        self.start_agent()

    def start_tap(self, *options: str) -> None:
        """Start the tap, with further options, and wait for its socket."""
        run_dir = self.setup.path("run")
        argv: list[str | Path] = [tool("holdfast-tap"), "--run-dir", run_dir]
        argv += ["--state-dir", self.setup.path("tap"), "--ring-dir", self._rings, *options]
        self.tap = self._processes.start("tap", argv)
        self._wait(self.tap, "the tap answers", (run_dir / "tap.sock").exists)

    def start_agent(self) -> None:
        """Start the agent and wait until it answers."""
        argv: list[str | Path] = [
            tool("holdfast-agent"),
            "run",
            "--config",
            self.setup.path("agent.toml"),
        ]
        self.agent = self._processes.start("agent", argv)
        self._wait(self.agent, "the agent answers", self._answers)

    def _answers(self) -> bool:
        argv = self.agent_command("status", "--json")
        return run(argv, allowed=range(256)).returncode == 0

    def _wait(self, process: Process, what: str, is_so: Callable[[], bool]) -> None:
        def check() -> bool:
            process.require()
            return is_so()

        try:
            wait_until(what, _START_SECONDS, check)
        except DemoFailed as failure:
            raise DemoFailed(f"{failure.message} It said: {process.tail()}") from None

    def agent_command(self, *words: str | Path) -> list[str | Path]:
        return [tool("holdfast-agent"), *words, "--config", self.setup.path("agent.toml")]

    def attach(self) -> str:
        """Protect the disk; the NBD URI that its machine uses."""
        argv = self.agent_command("attach", GROUP, DISK, "--disk", self.disk, "--json")
        return str(json_output(argv)["uri"])

    def status(self) -> dict[str, Any]:
        """What the agent says of the group."""
        content = json_output(self.agent_command("status", "--json"))
        for group in content["groups"]:
            if group["group"] == GROUP:
                return dict(group)
        raise DemoFailed(f"status does not name the group: {content}")

    def wait_protected(self, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Wait for the end of the initial sync; DemoFailed."""
        deadline = time.monotonic() + _SYNC_SECONDS
        while time.monotonic() < deadline:
            for process in (self.ingest, self.tap, self.agent):
                if process is not None:
                    process.require()
            now = self.status()
            tell(now)
            if now["state"] == "recording":
                return now
            time.sleep(0.2)
        raise DemoFailed(f"The initial sync did not end within {_SYNC_SECONDS:.0f} s: {now}")

    def checkpoint(self, tag: str, *, wait: bool = True) -> dict[str, Any]:
        """Make a tagged checkpoint; with `wait`, return once the store has it."""
        words = ["checkpoint", GROUP, "--tag", tag, *(["--wait"] if wait else []), "--json"]
        return json_output(self.agent_command(*words))

    def stop(self) -> None:
        """Stop agent, tap and ingest; their state stays."""
        for process in (self.agent, self.tap, self.ingest):
            if process is not None:
                process.stop()

    def delete(self) -> None:
        """Remove the disk and all that the site knew: keys, state, rings, sockets."""
        self.disk.unlink()
        shutil.rmtree(self._folder)
        self.drop_rings()

    def drop_rings(self) -> None:
        """Give the rings' memory back."""
        shutil.rmtree(self._rings, ignore_errors=True)
