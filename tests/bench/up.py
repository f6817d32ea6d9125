"""`holdfast up`: how soon it answers, and what it takes. `python -m tests.bench.up [TENANTS]`.

The first answer is one that reads the database with the provider's key, counted from the start of
the command, in an empty folder and in one that was stopped. Memory is the PSS of all processes:
pages that several share count for each by its part. It is read after half a minute of rest, with
one tenant, then with 200, each with a host whose certificate its own process at the data node has
accepted.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from app.embedded.folder import Folder
from host_agent.wire.message import ALPN
from host_agent.wire.names import INGEST, server_name
from infra.demo.processes import free_port
from tests.app.joining import make_key, request_of
from tests.bench.cases import Case, run
from tests.bench.processes import BenchFailed, Process, proportional_bytes
from tests.bench.workspace import REAL
from tests.integration.deployment import descendants
from workers.cli.datanode import NodeAway, read_status

BENCH = "up"
TENANTS = 200
EMPTY_SECONDS_MAX, WARM_SECONDS_MAX = 8.0, 4.0
MEMORY_MIB_MAX, TENANT_MIB_MAX = 450.0, 25.0
_HOST, _MIB = "127.0.0.1", 1 << 20
_REPEATS, _REST_SECONDS = 3, 30.0
_WAIT_SECONDS_MAX, _LOOK_SECONDS = 120.0, 0.01


@dataclass
class Up:
    """An installation in a folder of its own. `start` and `stop` as a user does them."""

    folder: Folder
    ports: tuple[int, int, int]
    process: Process | None = None
    #: What hosts hold open.
    lines: list[ssl.SSLSocket] = field(default_factory=list)

    def start(self) -> float:
        """Seconds until its first answer that reads the database; BenchFailed."""
        begin = time.monotonic()
        words = [sys.executable, "-m", "workers.cli.main", "up", "--json"]
        words += ["--directory", str(self.folder.path)]
        for door, port in zip(("--port", "--control-port", "--data-port"), self.ports, strict=True):
            words += [door, str(port)]
        self.process = Process("up", words, self.folder.path.parent)
        _until(self._answers, self.process)
        return time.monotonic() - begin

    def _answers(self) -> bool:
        try:
            token = self.folder.provider_key.read_text().strip()
            self.ask("GET", "/v1/provider/tenants", token)
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """As Ctrl-C does."""
        for line in self.lines:
            line.close()
        self.lines.clear()
        if self.process is not None:
            self.process.stop()

    def ask(self, method: str, path: str, token: str, body: Any = None) -> Any:
        """A call of the API; OSError, BenchFailed for a refusal."""
        context = ssl.create_default_context(cafile=str(self.folder.root_file))
        line = http.client.HTTPSConnection(_HOST, self.ports[0], timeout=30, context=context)
        with contextlib.closing(line):
            headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
            line.request(method, path, None if body is None else json.dumps(body), headers)
            answer = line.getresponse()
            told = json.loads(answer.read())
        if answer.status >= 300:
            raise BenchFailed(f"{method} {path}: {told}")
        return told

    @property
    def bytes(self) -> int:
        """PSS of all its processes."""
        assert self.process is not None
        pids = [self.process.pid, *descendants(self.process.pid)]
        return sum(proportional_bytes(pid) for pid in pids)


@contextlib.contextmanager
def installation() -> Iterator[Up]:
    """An empty folder on a real disk; gone with the block."""
    with tempfile.TemporaryDirectory(prefix="hfb-", dir=REAL) as made:
        Path(made).chmod(0o755)  # the database's unprivileged user has to reach its part
        up = Up(Folder(Path(made) / "state"), (free_port(), free_port(), free_port()))
        try:
            yield up
        finally:
            up.stop()


def _until(is_so: Callable[[], bool], process: Process | None) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS_MAX
    while not is_so():
        assert process is not None
        process.check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"waited {_WAIT_SECONDS_MAX:.0f} s in vain:\n{process.log_end()}")
        time.sleep(_LOOK_SECONDS)


# ------------------------------------------------------------------ tenants with a host each


def add_tenant(up: Up, number: int) -> None:
    """A tenant whose host is connected to the tenant's own process."""
    provider = up.folder.provider_key.read_text().strip()
    made = up.ask("POST", "/v1/provider/tenants", provider, {"name": f"tenant {number}"})
    join = up.ask("POST", "/v1/join-tokens", made["token"], {"name": "host"})
    key = make_key()
    wanted = {"certificate_request": request_of(key), "agent_version": "1"}
    host = up.ask("POST", "/v1/enrolments", join["token"], wanted)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = up.folder.path.parent / f"{number}.pem"
    file.write_bytes(host["certificate"].encode() + pem)
    up.lines.append(_connect(up, made["id"], file))


def _connect(up: Up, tenant: str, file: Path) -> ssl.SSLSocket:
    """A host's connection, once the data node serves the tenant."""
    context = ssl.create_default_context(cafile=str(up.folder.root_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(file)
    name, found = server_name(tenant, INGEST), []

    def is_connected() -> bool:
        line = socket.socket()
        line.settimeout(30)
        try:
            line.connect((_HOST, up.ports[2]))
            tls = context.wrap_socket(line, server_hostname=name)
        except OSError:
            line.close()
            time.sleep(0.1)
            return False
        found.append(tls)
        return _is_let_in(tls)

    _until(is_connected, up.process)
    return found[-1]


def _is_let_in(line: ssl.SSLSocket) -> bool:
    """Whether the server left the line open after it saw the certificate."""
    line.settimeout(0.1)
    try:
        return line.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def _ready(up: Up) -> int:
    try:
        services = read_status(up.folder.data_node)["services"]
    except NodeAway:
        return 0
    return sum(one["state"] == "ready" and one["service"] == INGEST for one in services)


# ------------------------------------------------------------------ cases


def start_cases() -> Iterator[Case]:
    """The first answer in an empty folder, and in one that was stopped."""
    empty, warm = [], []
    for _ in range(_REPEATS):
        with installation() as up:
            empty.append(up.start())
            up.stop()
            warm.append(up.start())
    for case, seconds, limit in (
        ("first answer in an empty folder", empty, EMPTY_SECONDS_MAX),
        ("first answer after a warm start", warm, WARM_SECONDS_MAX),
    ):
        ours = statistics.median(seconds)
        note = f"{min(seconds):.1f} to {max(seconds):.1f} s in {_REPEATS} starts"
        yield Case(BENCH, case, "s", ours, "limit", limit, 1.0, better="lower", note=note)


def memory_cases(tenants: int) -> Iterator[Case]:
    """PSS of everything with one tenant, and what each further one adds."""
    with installation() as up:
        up.start()
        add_tenant(up, 0)
        time.sleep(_REST_SECONDS)
        one = up.bytes / _MIB
        yield Case(
            BENCH, "idle with one tenant, all processes", "MiB", one, "limit", MEMORY_MIB_MAX,
            1.0, better="lower", note=_parts(up),
        )  # fmt: skip
        for number in range(1, tenants):
            add_tenant(up, number)
        _until(lambda: _ready(up) == tenants, up.process)
        time.sleep(_REST_SECONDS)
        all_of_them = up.bytes / _MIB
    ours = (all_of_them - one) / (tenants - 1)
    note = f"{tenants} tenants, each with a host: {all_of_them:.0f} MiB in all"
    yield Case(
        BENCH, "each further tenant, all processes", "MiB", ours, "limit", TENANT_MIB_MAX,
        1.0, better="lower", note=note,
    )  # fmt: skip


def _parts(up: Up) -> str:
    """MiB of each kind of process, the largest first."""
    assert up.process is not None
    parts: dict[str, int] = {}
    for pid in (up.process.pid, *descendants(up.process.pid)):
        name = _name(pid)
        parts[name] = parts.get(name, 0) + proportional_bytes(pid)
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / _MIB:.0f}" for name, size in ordered)


def _name(pid: int) -> str:
    """`api` of `python -m workers.cli.main api`; else the program's own name."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "workers.cli.main" in words:
            return words[words.index("workers.cli.main") + 1]
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "gone"


def cases(tenants: int = TENANTS) -> Iterator[Case]:
    """Every case of this benchmark."""
    yield from start_cases()
    yield from memory_cases(tenants)


if __name__ == "__main__":
    sys.exit(run(cases(int(sys.argv[1]) if len(sys.argv) > 1 else TENANTS)))
