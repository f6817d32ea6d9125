"""A real ingest process with its own certificate authority, started and ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from host_agent.wire.names import agent_san
from infra.dev_certificates import Authority, Issued

TENANT = "acme"
_RUN = """
import sys
from pathlib import Path
from host_agent.wire.errors import HoldfastError
from workers.ingest.command import run_ingest
try:
    sys.exit(run_ingest(Path(sys.argv[1])))
except HoldfastError as error:
    print("error", error.code, error, file=sys.stderr)
    sys.exit(2)
"""
_START_SECONDS_MAX = 20


class Pki:
    """One tenant's authority, and files for its certificates."""

    def __init__(self, directory: Path, name: str = "Holdfast test") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._authority = Authority(name, datetime.now(UTC))
        self.ca = self._write("ca", lambda: self._authority.issued)
        names, addresses = ("localhost",), ("127.0.0.1",)
        self.server = self._write("ingest", lambda: self._authority.server(names, addresses))

    def agent(self, host: str, tenant: str = TENANT) -> tuple[Path, Path]:
        """Certificate and key of a host's agent."""
        return self.client(f"{tenant}-{host}", agent_san(tenant, host))

    def client(self, name: str, uri: str) -> tuple[Path, Path]:
        """Certificate and key for any URI."""
        return self._write(name, lambda: self._authority.client(name, uri))

    def _write(self, name: str, issue: Callable[[], Issued]) -> tuple[Path, Path]:
        certificate, key = (self._directory / f"{name}.{kind}" for kind in ("crt", "key"))
        if not certificate.exists():
            issued = issue()
            certificate.write_bytes(issued.certificate)
            key.write_bytes(issued.key)
            key.chmod(0o600)
        return certificate, key


@dataclass
class IngestSetup:
    """What an ingest is started with."""

    directory: Path
    pki: Pki
    store: str
    settings: Mapping[str, object] = field(default_factory=dict)
    hosts: Mapping[str, list[str]] | None = None
    credentials: Path | None = None

    def write(self) -> Path:
        """Write the configuration file."""
        lines = [f'tenant = "{TENANT}"', 'listen = "127.0.0.1:0"', f'store = "{self.store}"']
        lines.append(f'status_socket = "{self.status_socket}"')
        if self.credentials is not None:
            lines.append(f'store_credentials_file = "{self.credentials}"')
        own = {"commit_seconds_min": 0.02, "asof_seconds": 3600.0, **self.settings}
        limits = own.pop("limits", {})
        lines += [f"{name} = {json.dumps(value)}" for name, value in own.items()]
        certificate, key = self.pki.server
        lines += ["[tls]", f'certificate_file = "{certificate}"', f'key_file = "{key}"']
        lines.append(f'client_ca_file = "{self.pki.ca[0]}"')
        assert isinstance(limits, dict)
        lines += ["[limits]", *(f"{name} = {value}" for name, value in limits.items())]
        if self.hosts is not None:
            lines += ["[hosts]"]
            lines += [f"{host} = {json.dumps(groups)}" for host, groups in self.hosts.items()]
        path = self.directory / "ingest.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    @property
    def status_socket(self) -> Path:
        """Short, wherever the directory is: socket names have at most 107 bytes."""
        return self.directory / "s"


class IngestProcess:
    """A running ingest."""

    def __init__(self, setup: IngestSetup, env: Mapping[str, str] | None = None) -> None:
        self.setup = setup
        self.log_path = setup.directory / f"ingest-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(setup.write())],
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=Path(__file__).parents[2],
            )
        self.address = self._wait()

    def _wait(self) -> tuple[str, int]:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while time.monotonic() < deadline:
            found = re.search(r"event=listening address=([0-9.]+):(\d+)", self.log)
            if found:
                return found[1], int(found[2])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"ingest did not start:\n{self.log}")

    @property
    def log(self) -> str:
        """All that it said."""
        return self.log_path.read_text()

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.setup.status_socket))
            data = b"".join(iter(lambda: connection.recv(65536), b""))
        status: dict[str, Any] = json.loads(data)
        return status

    def stream(self, group: str = "shop", host: str = "host1") -> dict[str, Any]:
        """One stream's status."""
        for stream in self.status()["streams"]:
            if (stream["group"], stream["host"]) == (group, host):
                return dict(stream)
        raise KeyError(f"{group}/{host}")

    def stop(self) -> int:
        """An orderly end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.process.returncode

    def kill(self) -> None:
        """As a power switch would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def running_ingest(
    setup: IngestSetup, env: Mapping[str, str] | None = None
) -> Iterator[IngestProcess]:
    """Start an ingest; end it at the end, however the test went."""
    ingest = IngestProcess(setup, env)
    try:
        yield ingest
    finally:
        ingest.kill()
