"""`holdfast up` and hosts that join it, each a process as a user runs it."""

from __future__ import annotations

import json
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, Processes, free_port, json_output, tool

SECONDS = 150.0
DISK = "db.raw"


class Refused(Exception):
    """The API answered with a problem."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status}: {problem}")
        self.status, self.problem = status, problem


@dataclass
class Deployment:
    """The whole service in a folder."""

    folder: Path
    processes: Processes
    api: str
    doors: tuple[int, int, int]
    #: In memory: a tap leaves its rings where they are, for its successor.
    rings: Path
    up: Process | None = None

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        api, control, data = map(str, self.doors)
        words: list[str | Path] = [tool("holdfast"), "up", "--directory", self.state, "--json"]
        words += ["--port", api, "--control-port", control, "--data-port", data]
        self.up = self.processes.start("up", words, pipes=True)
        assert self.up.popen.stdout is not None
        line = self.up.popen.stdout.readline()
        assert line.startswith(b'{"url"'), line + self.up.tail().encode()

    def ask(self, method: str, path: str, token: str, body: Any = None) -> Any:
        """A call of the API; Refused."""
        context = ssl.create_default_context(cafile=str(self.state / "root.crt"))
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        if method == "PUT":
            headers["if-match"] = "*"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.loads(error.read())) from None

    @property
    def provider(self) -> str:
        """The token of the provider's staff."""
        return (self.state / "provider.key").read_text().strip()

    def pid_of(self, words: bytes, *, is_newest: bool = False) -> int:
        """The oldest or newest process of the service with these words, or of this name."""
        assert self.up is not None

        def found() -> int | None:
            assert self.up is not None
            pids = [pid for pid in descendants(self.up.pid) if words in command_line(pid)]
            return max(pids, default=None) if is_newest else min(pids, default=None)

        return int(until(f"a process {words!r}", found))

    def make_tenant(self, name: str) -> Tenant:
        """A tenant with its first administrator and a site."""
        made = self.ask("POST", "/v1/provider/tenants", self.provider, {"name": name})
        tenant = Tenant(self, name, made["token"], made["id"])
        tenant.site_id = tenant.post("/v1/sites", {"name": "here", "territory": "CH"})["id"]
        return tenant


@dataclass
class Tenant:
    """Somebody of a tenant."""

    deployment: Deployment
    name: str
    token: str
    id: str
    site_id: str = ""

    def get(self, path: str) -> Any:
        return self.deployment.ask("GET", path, self.token)

    def post(self, path: str, body: Any = None) -> Any:
        return self.deployment.ask("POST", path, self.token, body)

    def join(self, name: str, disk_bytes: int) -> Host:
        """A host with one disk, enrolled and running."""
        folder = self.deployment.folder / f"{self.name}-{name}"
        folder.mkdir()
        host = Host(self.deployment, name, folder, tenant=self)
        host.disk.parent.mkdir()
        with host.disk.open("wb") as disk:
            disk.truncate(disk_bytes)
        host.join()
        host.start()
        return host

    def ended(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The operation at its end."""

        def over() -> Any:
            now = self.get(f"/v1/operations/{operation['id']}")
            return now if now["state"] not in ("queued", "running") else None

        last: dict[str, Any] = until(f"{operation['kind']} is over", over)
        return last

    def finished(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The operation at its end; it must have succeeded."""
        last = self.ended(operation)
        assert last["state"] == "succeeded", last
        return last


@dataclass
class Hypervisor:
    """A machine with a tap and an agent, whoever owns it."""

    deployment: Deployment
    name: str
    folder: Path
    id: str = ""
    agent: Process | None = None
    tap: Process | None = None

    def enrol(self, join_token: str, reach: str) -> None:
        """Join with a token; `reach`: what host.toml says besides where the tap is."""
        token = self.folder / "join.token"
        token.touch(0o600)
        token.write_text(join_token)
        words: list[str | Path] = [tool("holdfast-agent"), "enrol", "--json"]
        words += ["--api", self.deployment.api]
        words += ["--token-file", token, "--directory", self.folder / "identity"]
        self.id = json_output(words)["host_id"]
        (self.folder / "identity/host.toml").write_text(
            f'[tap]\nrun_dir = "{self.folder}/run"\nstate_dir = "{self.folder}/tap"\n{reach}'
        )

    def start(self) -> None:
        """Start the tap, then the agent."""
        (self.folder / "run").mkdir(exist_ok=True)
        (self.deployment.rings / self.folder.name).mkdir(exist_ok=True)
        words: list[str | Path] = [tool("holdfast-tap"), "--run-dir", self.folder / "run"]
        words += ["--state-dir", self.folder / "tap"]
        words += ["--ring-dir", self.deployment.rings / self.folder.name]
        self.tap = self.deployment.processes.start(f"tap-{self.name}", words)
        self.start_agent()

    def start_agent(self, env: Mapping[str, str] | None = None) -> None:
        words: list[str | Path] = [tool("holdfast-agent"), "run"]
        words += ["--identity", self.folder / "identity"]
        self.agent = self.deployment.processes.start(f"agent-{self.name}", words, env=env)


@dataclass
class Host(Hypervisor):
    """A hypervisor machine of a tenant, with one machine that has one disk."""

    tenant: Tenant = field(kw_only=True)
    vpg: str = ""
    disk_id: str = ""

    @property
    def disk(self) -> Path:
        return self.folder / "disks" / DISK

    @property
    def uri(self) -> str:
        """Where the machine reaches its disk."""
        return f"nbd+unix:///{self.disk_id}?socket={self.folder}/run/{self.vpg}.nbd"

    def join(self) -> None:
        """Enrol with a join token."""
        wanted = {"name": self.name, "site_id": self.tenant.site_id}
        reach = f'[inventory]\nfolders = ["{self.disk.parent}"]\nrecovery = ["{self.folder}"]\n'
        self.enrol(self.tenant.post("/v1/join-tokens", wanted)["token"], reach)

    def agent_status(self) -> dict[str, Any]:
        """What the agent itself says of its one group."""
        words: list[str | Path] = [tool("holdfast-agent"), "status", "--json"]
        found: dict[str, Any] = json_output([*words, "--identity", self.folder / "identity"])
        return dict(found["groups"][0])

    def protect(self, group: str) -> None:
        """Make a group of its machine, and wait until it is in sync."""

        def machine() -> Any:
            mine = self.tenant.get("/v1/machines")["items"]
            return next((one for one in mine if one["host_id"] == self.id), None)

        found = until("the machine is known", machine)
        self.disk_id = found["disks"][0]["id"]
        members = [{"machine_id": found["id"]}]
        wanted = {"name": group, "machines": members, "settings": {"rpo_seconds": 5}}
        self.vpg = self.tenant.post("/v1/vpgs", wanted)["id"]
        until("the group is in sync", lambda: self.status()["sync"] == "in_sync")

    def status(self) -> dict[str, Any]:
        """The group."""
        found: dict[str, Any] = self.tenant.get(f"/v1/vpgs/{self.vpg}")
        return found

    def checkpoint(self, tag: str) -> str:
        """A tagged checkpoint that is complete; its id."""
        taken = self.tenant.post(f"/v1/vpgs/{self.vpg}/checkpoints", {"tag": tag})
        return str(self.tenant.finished(taken)["input"]["checkpoint"])

    def restore(self, at: str, folder: str) -> Path:
        """The disk at that moment, brought back on this host by the API."""
        where = self.folder / folder
        wanted = {"at": at, "host_id": self.id, "directory": str(where)}
        self.tenant.finished(self.tenant.post(f"/v1/vpgs/{self.vpg}:restore", wanted))
        (image,) = where.rglob("*.raw")
        return image


def command_line(pid: int) -> bytes:
    """The words of a process and its name, or none where it is gone."""
    try:
        process = Path(f"/proc/{pid}")
        return process.joinpath("cmdline").read_bytes() + process.joinpath("comm").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, and those that they did."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from descendants(child)


def until(what: str, ask: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `ask` says once it says something; it may fail meanwhile."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = ask()
        except (Refused, OSError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"Waited {seconds:.0f} s in vain: {what}. Last: {last}")


@contextmanager
def running_deployment() -> Iterator[Deployment]:
    """The service, running; everything is ended and removed with the block."""
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    folder.chmod(0o755)  # the database's unprivileged user has to reach its part
    (folder / "logs").mkdir()
    processes = Processes(folder / "logs")
    doors = (free_port(), free_port(), free_port())
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/dev/shm") as rings:
        api = f"https://localhost:{doors[0]}"
        made = Deployment(folder, processes, api, doors, Path(rings))
        try:
            made.start()
            yield made
        finally:
            processes.stop_all()
            shutil.rmtree(folder, ignore_errors=True)
