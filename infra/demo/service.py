"""The whole service, and who uses it: `holdfast up`, its provider, its tenants."""

from __future__ import annotations

import json
import select
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, free_port
from infra.demo.report import DemoFailed
from infra.demo.shell import Shell

TERRITORY = "CH"
_START_SECONDS, _STOP_SECONDS = 120.0, 60.0
_STATE = "service"


@dataclass
class Service:
    """`holdfast up` in a folder and on ports of its own."""

    shell: Shell
    ports: tuple[int, int, int] = field(
        default_factory=lambda: (free_port(), free_port(), free_port())
    )
    process: Process | None = None

    @property
    def state(self) -> Path:
        """Where all of it lies."""
        return self.shell.folder / _STATE

    @property
    def bucket(self) -> Path:
        """Where the tenants' journals are."""
        return self.state / "store"

    @property
    def store(self) -> str:
        """The same as a URL."""
        return f"file://{self.bucket}"

    @property
    def api(self) -> str:
        """Its address."""
        return f"https://localhost:{self.ports[0]}"

    @property
    def data_door(self) -> tuple[str, int]:
        """Where streams and restores are."""
        return ("127.0.0.1", self.ports[2])

    def start(self) -> None:
        """Start it and wait until it answers; DemoFailed."""
        ports = zip(("--port", "--control-port", "--data-port"), self.ports, strict=True)
        words = [word for option, port in ports for word in (option, str(port))]
        self.process = self.shell.start(
            "up", "holdfast", "up", "--directory", _STATE, *words, "--json", pipes=True
        )
        assert self.process.popen.stdout is not None
        said = b""
        if select.select([self.process.popen.stdout], [], [], _START_SECONDS)[0]:
            said = self.process.popen.stdout.readline()
        if not said:
            self.process.stop(seconds=_STOP_SECONDS)
            raise DemoFailed(f"The service did not start: {self.process.tail()}")
        json.loads(said)
        self._add_profile("provider", f"{_STATE}/provider.key")

    def _add_profile(self, name: str, token_file: str) -> None:
        reached = ("--api", self.api, "--root-file", f"{_STATE}/root.crt")
        self.shell.run("holdfast", "profile", "add", name, *reached, "--token-file", token_file)

    def make_tenant(self, name: str) -> Tenant:
        """A tenant, its administrator's profile, and a site."""
        profile = name.lower()
        key = f"{profile}.key"
        words = ["holdfast", "tenant", "create", name, "--save-token", key]
        made = self.shell.ask(*words, "--profile", "provider")
        self._add_profile(profile, key)
        return Tenant(self, name, profile, str(made["id"]))

    def as_provider(self, *words: str) -> dict[str, Any]:
        """A command of the provider's staff."""
        return self.shell.ask("holdfast", "provider", *words, "--profile", "provider")

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            self.process.stop(seconds=_STOP_SECONDS)


@dataclass(frozen=True)
class Tenant:
    """An administrator of a tenant at the command line."""

    service: Service
    name: str
    profile: str
    id: str

    @property
    def key_file(self) -> Path:
        """The administrator's API key."""
        return self.service.shell.folder / f"{self.profile}.key"

    def run(self, *words: str) -> str:
        """A command as this tenant."""
        return self.service.shell.run("holdfast", *words, "--profile", self.profile)

    def ask(self, *words: str) -> dict[str, Any]:
        """The same, answered with an object."""
        return self.service.shell.ask("holdfast", *words, "--profile", self.profile)

    def peek(self, *words: str) -> dict[str, Any]:
        """The same, not shown."""
        return self.service.shell.peek("holdfast", *words, "--profile", self.profile)

    def checkpoint(self, group: str, tag: str) -> str:
        """A tagged checkpoint that every stream's journal has; its id."""
        said = self.ask("checkpoint", "create", group, tag, "--wait")
        return str(said["input"]["checkpoint"])

    def restore(self, group: str, at: str, target: tuple[str, str], folder: Path) -> Path:
        """The group's one disk at that moment, brought back on a host or in a pool; DemoFailed."""
        where = (*target, "--directory", str(folder))
        self.run("vpg", "restore", group, "--at", at, *where, "--wait")
        images = sorted(folder.rglob("*.raw"))
        if len(images) != 1:
            raise DemoFailed(f"The restore wrote {len(images)} images instead of one.")
        return images[0]
