"""Three days without a control plane; each process of the data path is started again meanwhile."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from infra.demo.processes import tool
from infra.demo.report import DemoFailed
from tests.integration.deployment import Host, Tenant, running_deployment, until
from tests.integration.nbd import NbdClient
from tests.supervisor.test_alone import days_later
from workers.supervisor.record import Kept, RecordStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("service"),
]
_DISK_BYTES = 8 * 1024 * 1024
_DAYS = 3


def write(host: Host, seed: int) -> None:
    """Some blocks, anywhere."""
    rng = random.Random(seed)
    with NbdClient(host.uri) as client:
        for _ in range(60):
            client.write(rng.randrange(0, _DISK_BYTES - 4096, 4096), rng.randbytes(4096))


def is_drained(host: Host) -> bool:
    """Whether the journal has all that was written; not while the agent still starts."""
    try:
        now = host.agent_status()
    except DemoFailed:
        return False
    return bool(now["stored"] == now["head"] and now["state"] == "recording")


def told_by(host: Host) -> str:
    """What the agent says of its group, and what it wrote."""
    assert host.agent is not None
    try:
        status = json.dumps(host.agent_status())
    except DemoFailed as error:
        status = str(error)
    return f"{status}\n{host.agent.tail()}"


def cli(home: Path, *words: str | Path, typed: str = "") -> str:
    """A command of the tenant's administrator, with a home of its own."""
    done = subprocess.run(
        [str(word) for word in (tool("holdfast"), *words)],
        input=typed, env={**os.environ, "XDG_CONFIG_HOME": str(home)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def keep_key(tenant: Tenant, home: Path) -> Path:
    """The tenant's key file, as somebody keeps it who counts on losing the service."""
    deployment = tenant.deployment
    root = deployment.state / "root.crt"
    told = ("--api", deployment.api, "--root-file", root, "--token-file", "-")
    cli(home, "profile", "add", "own", *told, typed=tenant.token)
    words = ("keys", "export-recovery", "--tenant-name", tenant.name, "--reason", "a test")
    cli(home, *words, "--output", home / "own.key")
    return home / "own.key"


def is_denied(host: Host) -> bool:
    """Whether the data node has heard that the host is out."""
    records = RecordStore.open(host.tenant.deployment.state / "datanode").load()
    return any(isinstance(kept, Kept) and host.id in kept.record.denied for kept in records)


def listens(pid: int) -> set[str]:
    """TCP addresses on which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1])
    return found


@pytest.mark.invariant("I2", "I9", "I14")
def test_replication_goes_on_and_who_was_shut_out_stays_out(tmp_path: Path) -> None:
    """API, managers, key service, worker, PostgreSQL and Valkey are gone; certificates ran out two
    days ago; agent, data node and ingest are each started again.
    """
    with running_deployment() as deployment:
        tenant = deployment.make_tenant("Acme")
        tenant_id = tenant.get("/v1/tenant")["id"]
        kept, out = (tenant.join(name, _DISK_BYTES) for name in ("kept", "out"))
        for host in (kept, out):
            host.protect(host.name)
            write(host, 1)
            assert host.agent is not None
            assert host.tap is not None
            assert listens(host.agent.pid) == listens(host.tap.pid) == set()
        key = keep_key(tenant, tmp_path)
        tenant.post(f"/v1/hosts/{out.id}:revoke")
        until("the data node knows who is out", lambda: is_denied(out))
        assert deployment.up is not None
        deployment.up.stop(seconds=60)
        later = days_later(_DAYS)
        for host in (kept, out):
            assert host.agent is not None
            host.agent.stop()
            write(host, 2)
            host.start_agent(later)
        _, control, data = deployment.doors
        told = {
            "HOLDFAST_DATANODE_DIRECTORY": str(deployment.state / "datanode"),
            "HOLDFAST_DATANODE_LISTEN": f"127.0.0.1:{data}",
            "HOLDFAST_CONTROL_DOORS": f"127.0.0.1:{control}",
        }
        node = deployment.processes.start(
            "datanode-alone", [tool("holdfast"), "datanode"], env={**told, **later}
        )
        write(kept, 3)
        try:
            until("what was written is stored", lambda: is_drained(kept))
        except AssertionError as error:
            pytest.fail(f"{error}\n{told_by(kept)}\n{node.tail()}")
        log = node.log.read_text()
        assert "event=certificate_late" in log
        until("who is out was refused", lambda: "event=peer_refused" in node.log.read_text())
        assert out.agent_status()["phase"] != "streaming"
        assert not is_drained(out)
        wanted = kept.disk.read_bytes()
        node.stop()
        words = ["--store", f"file://{deployment.state}/store", "--tenant", tenant_id]
        words += ["--key-file", str(key), "--group", kept.vpg, "--at", "latest-write"]
        cli(tmp_path, "restore", "export", *words, "--output", tmp_path / "restored")
        (image,) = (tmp_path / "restored").glob("*.raw")
        assert image.read_bytes() == wanted
