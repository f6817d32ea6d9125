"""A host of the provider's with tenants placed on it, and groups of several machines."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.deployment import Deployment, Hypervisor, Tenant, descendants, until
from tests.integration.nbd import NbdClient

DISK_BYTES = 4 * 1024 * 1024


def make_disks(folder: Path, names: list[str]) -> None:
    """A raw disk for each of these machines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with (folder / f"{name}.raw").open("wb") as disk:
            disk.truncate(DISK_BYTES)


@dataclass
class CloudHost(Hypervisor):
    """A host of the provider's in a pool."""

    pool_id: str = ""

    def join(self, pool_id: str) -> None:
        """Enrol with a token of the provider's, and run."""
        self.pool_id = pool_id
        wanted = {"name": self.name, "pool_id": pool_id}
        made = self.ask("POST", "join-tokens", wanted)
        places = f'folders = ["{self.folder}/disks/{{tenant}}"]\n'
        places += f'recovery = ["{self.folder}/restored/{{tenant}}"]\n'
        self.enrol(made["token"], f"[placed]\n{places}")
        self.start()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call as the provider's staff."""
        token = self.deployment.provider
        return self.deployment.ask(method, f"/v1/provider/{path}", token, body)

    def identity_of(self, tenant: Tenant) -> Path:
        """The folder of the tenant's own identity there."""
        return self.folder / "identity/tenants" / tenant.id

    def place(self, tenant: Tenant, names: list[str]) -> str:
        """Place a tenant that has these machines there; the placement's id."""
        make_disks(self.folder / "disks" / tenant.id, names)
        (self.folder / "restored" / tenant.id).mkdir(parents=True, exist_ok=True)
        made = self.ask("POST", "placements", {"tenant_id": tenant.id, "host_id": self.id})

        def is_placed() -> bool:
            now = self.ask("GET", f"placements/{made['id']}")
            return bool(now["state"] == "placed")

        until(f"{tenant.name} is placed on {self.name}", is_placed)
        return str(made["id"])

    def processes(self) -> list[int]:
        """The agent's own process and those that it made."""
        assert self.agent is not None
        return [self.agent.pid, *descendants(self.agent.pid)]


def make_pool(deployment: Deployment, name: str, territory: str = "CH") -> str:
    """The id of a pool at a site of its own."""

    def made(path: str, body: dict[str, str]) -> str:
        answer = deployment.ask("POST", f"/v1/provider/{path}", deployment.provider, body)
        return str(answer["id"])

    site = made("sites", {"name": f"site of {name}", "territory": territory})
    return made("pools", {"name": name, "site_id": site})


def cloud_host(deployment: Deployment, name: str, pool_id: str) -> CloudHost:
    """A running host of the provider's in this pool."""
    folder = deployment.folder / name
    folder.mkdir()
    host = CloudHost(deployment, name, folder)
    host.join(pool_id)
    return host


def grant(deployment: Deployment, tenant: Tenant, *pools: str) -> None:
    """Give the tenant a policy that allows these pools and every territory."""
    wanted = {"territories": None, "pools": [{"pool_id": pool} for pool in pools]}
    path = f"/v1/provider/tenants/{tenant.id}/policy"
    deployment.ask("PUT", path, deployment.provider, wanted)


class Group:
    """A group of all machines of these names, in sync, and what its guests wrote."""

    def __init__(self, tenant: Tenant, host: Hypervisor, names: list[str], seed: int) -> None:
        self.tenant, self.host, self._rng = tenant, host, random.Random(seed)

        def found() -> Any:
            there = {one["name"]: one for one in tenant.get("/v1/machines?limit=200")["items"]}
            return [there[name] for name in names] if set(names) <= there.keys() else None

        self.machines: list[dict[str, Any]] = until(f"machines {names} are known", found)
        members = [{"machine_id": one["id"]} for one in self.machines]
        wanted = {"name": names[0], "machines": members, "settings": {"rpo_seconds": 5}}
        self.id = str(tenant.post("/v1/vpgs", wanted)["id"])
        until(f"{names} are in sync", lambda: self.shown()["sync"] == "in_sync")
        self.model = {name: bytearray(DISK_BYTES) for name in names}

    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        found: dict[str, Any] = self.tenant.get(f"/v1/vpgs/{self.id}")
        return found

    def write(self, count: int = 20) -> None:
        """Write to every disk, as its machine does."""
        for machine in self.machines:
            (disk,) = machine["disks"]
            uri = f"nbd+unix:///{disk['id']}?socket={self.host.folder}/run/{self.id}.nbd"
            with NbdClient(uri) as guest:
                for _ in range(count):
                    at = self._rng.randrange(0, DISK_BYTES - 4096, 512)
                    data = self._rng.randbytes(4096)
                    guest.write(at, data)
                    self.model[machine["name"]][at : at + 4096] = data
                guest.flush()

    def checkpoint(self, tag: str) -> None:
        """A tagged checkpoint that is complete."""
        self.tenant.finished(self.tenant.post(f"/v1/vpgs/{self.id}/checkpoints", {"tag": tag}))

    def restore(self, at: str, directory: Path, **where: str) -> dict[str, bytes]:
        """What was brought back into the folder, by machine."""
        wanted = {"at": at, "directory": str(directory), **where}
        self.tenant.finished(self.tenant.post(f"/v1/vpgs/{self.id}:restore", wanted))
        images = {path.stem: path.read_bytes() for path in directory.rglob("*.raw")}
        return {one["name"]: images[one["disks"][0]["id"]] for one in self.machines}
