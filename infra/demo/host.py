"""A hypervisor machine of its own: a folder, a tap, an agent that enrolled, disks of tenants."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, wait_until
from infra.demo.service import TERRITORY, Service, Tenant
from infra.demo.shell import Shell

SITE = "Zürich"
_SECONDS = 180.0


@dataclass
class Seat:
    """What one tenant has on a host: a folder for disks, one for restores, an agent's process."""

    tenant: Tenant
    host: Host
    folder: str
    identity: str
    #: How the tenant names the host to who restores: by itself, or by the provider's pool it is in.
    target: tuple[str, str]

    @property
    def path(self) -> Path:
        """The tenant's folder there."""
        return self.host.shell.folder / self.folder

    def disk(self, machine: str) -> Path:
        """The disk of a machine: the agent takes its name from the file's."""
        return self.path / "disks" / f"{machine}.raw"

    @property
    def certificate(self) -> Path:
        """Certificate and key of the tenant's agent there."""
        return self.host.shell.folder / self.identity / "agent.pem"

    def protect(self, group: str, machine: str, ring_mib: int) -> Group:
        """Make a group of a machine, once the service knows that the host has it."""
        listed = ("machine", "list")

        def is_known() -> bool:
            return any(one["name"] == machine for one in self.tenant.peek(*listed)["items"])

        wait_until(f"{self.tenant.name} knows of the machine {machine}", _SECONDS, is_known)
        settings = ("--set", "rpo_seconds=5", "--set", f"ring_mib={ring_mib}")
        made = self.tenant.ask("vpg", "create", group, "--machine", machine, *settings)
        return Group(self, group, str(made["id"]))

    def restore(self, group: Group, at: str, name: str) -> Path:
        """A moment of the group's disk, brought back on this host; DemoFailed."""
        return self.tenant.restore(group.name, at, self.target, self.path / "restored" / name)

    def pid(self) -> int:
        """The process of the tenant's agent there."""
        words = ("holdfast-agent", "status", "--identity", self.identity)
        return int(self.host.shell.peek(*words)["pid"])


@dataclass(frozen=True)
class Group:
    """A protection group with one disk, seen from its host."""

    seat: Seat
    name: str
    id: str

    def uri(self) -> str:
        """Where the machine reaches its disk, as the agent says it; DemoFailed."""
        words = ("holdfast-agent", "status", "--identity", self.seat.identity)
        found: list[str] = []

        def is_served() -> bool:
            for group in self.seat.host.shell.peek(*words)["groups"]:
                tap = group["tap"] or {}
                if group["group"] == self.id and tap.get("disks"):
                    export, socket = tap["disks"][0]["disk"], tap["nbd_socket"]
                    found.append(f"nbd+unix:///{export}?socket={socket}")
            return bool(found)

        wait_until(f"the disk of {self.name} is served", _SECONDS, is_served)
        return found[-1]

    def show(self) -> dict[str, Any]:
        """What the service says of it."""
        return self.seat.tenant.peek("vpg", "show", self.name)

    def wait_synced(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Wait until the service says that it is in sync; DemoFailed."""

        def is_synced() -> bool:
            now = self.show()
            tell(now)
            return bool(now["sync"] == "in_sync")

        wait_until(f"{self.name} of {self.seat.tenant.name} is in sync", _SECONDS, is_synced)


Furnish = Callable[[Seat], None]
"""Gives a tenant's machines their disks, as they are there before any of ours runs."""


@dataclass
class Host:
    """Its tap and its agent are ours to end."""

    shell: Shell
    folder: str
    rings: Path = field(
        default_factory=lambda: Path(tempfile.mkdtemp(prefix="holdfast-", dir="/dev/shm"))
    )
    tap: Process | None = None
    agent: Process | None = None

    @property
    def path(self) -> Path:
        """Everything that the host has."""
        return self.shell.folder / self.folder

    def join(self, tenant: Tenant, name: str, furnish: Furnish) -> Seat:
        """Enrol with a join token of the tenant, and run."""
        token = f"{self.folder}.token"
        self.path.mkdir()
        tenant.run("host", "join", name, "--site", SITE, "--save-token", token)
        seat = self._seat(tenant, self.folder, self._identity, ("--host", name))
        furnish(seat)
        self._enrol(tenant.service, token, f"[inventory]\n{_reach(self.path)}")
        self._start()
        return seat

    def serve(
        self, service: Service, name: str, tenants: Sequence[Tenant], furnish: Furnish
    ) -> list[Seat]:
        """Join as the provider's host, and have these tenants placed on it."""
        token = f"{self.folder}.token"
        self.path.mkdir()
        site = service.as_provider("site", "create", SITE, "--territory", TERRITORY)["id"]
        pool = str(service.as_provider("pool", "create", "shared", "--site", site)["id"])
        service.as_provider("host", "join", name, "--pool", pool, "--save-token", token)
        seats = [
            self._seat(
                tenant,
                f"{self.folder}/{tenant.id}",
                f"{self._identity}/tenants/{tenant.id}",
                ("--pool", pool),
            )
            for tenant in tenants
        ]
        for seat in seats:
            furnish(seat)
        host_id = self._enrol(service, token, f"[placed]\n{_reach(self.path / '{tenant}')}")
        self._start()
        for tenant in tenants:
            service.as_provider("policy", "set", tenant.id, "--pool", pool)
            service.as_provider("place", tenant.id, host_id, "--wait")
        return seats

    @property
    def _identity(self) -> str:
        return f"{self.folder}/identity"

    def _seat(self, tenant: Tenant, folder: str, identity: str, target: tuple[str, str]) -> Seat:
        """Folders for a tenant's disks and restores."""
        seat = Seat(tenant, self, folder, identity, target)
        for part in ("disks", "restored"):
            (seat.path / part).mkdir(parents=True, exist_ok=True)
        return seat

    def _enrol(self, service: Service, token: str, reach: str) -> str:
        """Become who the token is for; the host's id. `reach`, in host.toml: who may reach what."""
        where = ("--api", service.api, "--token-file", token, "--directory", self._identity)
        made = self.shell.ask("holdfast-agent", "enrol", *where)
        text = f'[tap]\nrun_dir = "{self.path}/run"\n{reach}'
        (self.path / "identity/host.toml").write_text(text)
        return str(made["host_id"])

    def _start(self) -> None:
        """Start the tap, then the agent."""
        run_dir = self.path / "run"
        run_dir.mkdir()
        where = ("--run-dir", f"{self.folder}/run", "--state-dir", f"{self.folder}/tap")
        self.tap = self.shell.start("tap", "holdfast-tap", *where, "--ring-dir", str(self.rings))
        wait_until("the tap answers", _SECONDS, (run_dir / "tap.sock").exists)
        self.agent = self.shell.start(
            "agent", "holdfast-agent", "run", "--identity", self._identity
        )

    def stop(self) -> None:
        """End agent and tap; their state stays, their rings' memory is given back."""
        for process in (self.agent, self.tap):
            if process is not None:
                process.stop()
        shutil.rmtree(self.rings, ignore_errors=True)

    def lose(self) -> None:
        """What a fire does: no process, no disk, no identity, no ring is left."""
        for process in (self.agent, self.tap):
            if process is not None:
                process.popen.kill()
                process.end(10)
        shutil.rmtree(self.path)
        shutil.rmtree(self.rings, ignore_errors=True)


def _reach(path: Path) -> str:
    disks, restored = json.dumps([f"{path}/disks"]), json.dumps([f"{path}/restored"])
    return f"folders = {disks}\nrecovery = {restored}\n"
