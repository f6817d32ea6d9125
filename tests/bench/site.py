"""A protected site on one machine: ingest, tap and agent, each a process, real TLS between."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from infra.demo.processes import free_port
from infra.dev_keys import DevSetup, write_dev_setup
from tests.bench.ours import Tap, run_tap
from tests.bench.processes import BenchFailed, Process
from tests.bench.watch import Facts

_COMMAND_SECONDS_MAX = 60.0
_SETTLE_SECONDS_MAX = 120.0
GROUP = "demo"
TENANT = "acme"
HOST = "host1"


@dataclass(frozen=True)
class SiteOptions:
    """What is configured. The ring is the default one; the store is a folder beside the keys,
    which lie on tmpfs, or in `store_dir`, or what `store_url` says.
    """

    ring_mib: int = 128
    rpo_seconds: float = 5
    store_dir: Path | None = None
    store_url: str | None = None
    store_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """Running processes, and what they keep."""

    directory: Path
    tap: Tap
    ingest: Process
    agent: Process
    store_dir: Path

    @property
    def pids(self) -> tuple[int, int, int]:
        """Tap, agent, ingest."""
        return self.tap.pid, self.agent.pid, self.ingest.pid

    @property
    def chain(self) -> Path:
        """The folder of the journal's segments, of a local store."""
        return self.store_dir / TENANT / GROUP / HOST / "chain"

    def attach(self, disk: Path) -> str:
        """Protect a raw file by the agent's command; the URI that its machine uses."""
        command = [_beside_python("holdfast-agent"), "attach", GROUP, disk.stem]
        command += ["--json", "--disk", str(disk), "--config", str(self.directory / "agent.toml")]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS_MAX, check=False
        )
        if done.returncode != 0:
            raise BenchFailed(f"attach failed: {done.stdout}{done.stderr}\n{self.agent.log_end()}")
        return str(json.loads(done.stdout)["uri"])

    def facts(self) -> Facts:
        """What the tap says of the stream now."""
        return self.tap.facts(GROUP)

    def settle(self) -> None:
        """Until the stream is recording and everything recorded is stored."""
        deadline = time.monotonic() + _SETTLE_SECONDS_MAX
        while True:
            facts = self.facts()
            if facts.state == "recording" and facts.freed == facts.head:
                return
            for process in (self.ingest, self.agent):
                process.check()
            if time.monotonic() > deadline:
                raise BenchFailed(f"The stream did not settle: {facts}\n{self.agent.log_end()}")
            time.sleep(0.1)

    def trim_journal(self) -> None:
        """Remove old segments: a benchmark writes more than memory holds, and restores nothing."""
        for path in sorted(self.chain.iterdir())[:-4]:
            path.unlink()


def _beside_python(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise BenchFailed(f"{path} is missing: run `make venv`.")
    return str(path)


def _write_files(directory: Path, options: SiteOptions) -> DevSetup:
    store = options.store_url
    if options.store_dir is not None:
        store = f"file://{options.store_dir}"
    setup = DevSetup(
        directory, tenant=TENANT, host=HOST, group=GROUP, port=free_port(), store=store
    )
    write_dev_setup(setup, datetime.now(UTC))
    agent = setup.path("agent.toml")
    text = agent.read_text().replace("autostart = true", "autostart = false")
    text = text.replace("rpo_seconds = 5", f"rpo_seconds = {options.rpo_seconds}")
    agent.write_text(f"{text}ring_mib = {options.ring_mib}\n")
    return setup


@contextmanager
def run_site(directory: Path, options: SiteOptions | None = None) -> Iterator[Site]:
    """Everything started and connected; ended with the block."""
    options = options or SiteOptions()
    setup = _write_files(directory, options)
    with ExitStack() as stack:
        holdfast, agent_program = _beside_python("holdfast"), _beside_python("holdfast-agent")
        command = [holdfast, "ingest", "--config", str(setup.path("ingest.toml"))]
        environment = {**os.environ, **options.store_environment}
        ingest = stack.enter_context(Process("ingest", command, directory, environment))
        _wait_for_port(ingest, setup.port)
        tap = stack.enter_context(run_tap(directory))
        command = [agent_program, "run", "--config", str(setup.path("agent.toml"))]
        agent = stack.enter_context(Process("agent", command, directory))
        agent.wait_for(directory / "agent" / "agent.sock")
        yield Site(directory, tap, ingest, agent, options.store_dir or setup.path("store"))


def _wait_for_port(process: Process, port: int) -> None:
    deadline = time.monotonic() + _COMMAND_SECONDS_MAX
    while True:
        process.check()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise BenchFailed(f"ingest does not listen: {process.log_end()}") from None
            time.sleep(0.05)
        else:
            return
