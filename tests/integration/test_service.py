"""The whole service as its users meet it: `holdfast up`, hosts that join, groups, restores."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.integration.deployment import (
    Deployment,
    Host,
    Refused,
    Tenant,
    running_deployment,
    until,
)
from tests.integration.nbd import NbdClient

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("service")]
_DISK_BYTES = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    with running_deployment() as running:
        yield running


class Guest:
    """Writes to a host's disk, and knows what is on it."""

    def __init__(self, host: Host, seed: int) -> None:
        self._client = NbdClient(host.uri)
        self._rng = random.Random(seed)
        self.model = bytearray(_DISK_BYTES)

    def write(self, count: int) -> None:
        for _ in range(count):
            length = self._rng.choice((512, 4096, 32_768))
            at = self._rng.randrange(0, _DISK_BYTES - length, 512)
            data = self._rng.randbytes(length)
            self._client.write(at, data)
            self.model[at : at + length] = data

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def acme(deployment: Deployment) -> Tenant:
    return deployment.make_tenant("Acme")


@pytest.fixture(scope="module")
def shop(acme: Tenant) -> Host:
    host = acme.join("hypervisor-1", _DISK_BYTES)
    host.protect("shop")
    return host


def test_a_disk_comes_back_as_it_was_at_a_checkpoint(shop: Host) -> None:
    guest = Guest(shop, 1)
    guest.write(200)
    shop.checkpoint("before")
    wanted = bytes(guest.model)
    guest.write(50)
    shop.checkpoint("after")
    assert shop.restore("tag:before", "restored").read_bytes() == wanted
    shown = shop.tenant.get("/v1/operations")["items"]
    assert "ticket" not in json.dumps(shown), "a ticket is for the host alone"
    assert shop.restore("tag:after", "control").read_bytes() == bytes(guest.model) != wanted
    guest.close()


def test_another_tenant_sees_nothing_of_it(deployment: Deployment, shop: Host) -> None:
    checkpoint = shop.checkpoint("seen by nobody else")
    stranger = deployment.make_tenant("Globex")
    other = stranger.join("hypervisor-1", _DISK_BYTES)
    other.protect("shop")
    for path in (
        f"/v1/vpgs/{shop.vpg}",
        f"/v1/vpgs/{shop.vpg}/checkpoints",
        f"/v1/vpgs/{shop.vpg}/checkpoints/{checkpoint}",
        f"/v1/hosts/{shop.id}",
    ):
        shop.tenant.get(path)
        with pytest.raises(Refused) as refused:
            stranger.get(path)
        assert refused.value.status == 404, path
    wanted = {"at": "latest", "host_id": other.id, "directory": str(other.folder / "stolen")}
    with pytest.raises(Refused) as refused:
        stranger.post(f"/v1/vpgs/{shop.vpg}:restore", wanted)
    assert refused.value.status == 404
    assert not (other.folder / "stolen").exists()
    shown = [one["id"] for one in stranger.get("/v1/vpgs")["items"]]
    assert shown == [other.vpg]


#: What is killed, and how its process is told from the others.
PARTS = {
    "api": b"hf-api",
    "dsm": b"hf-dsm",
    "keys": b"workers.cli.main\0keys",
    "worker": b"hf-worker",
    "nursery": b"hf-nursery",
    "datanode": b"workers.cli.main\0datanode",
    "ingest": b"workers.supervisor.zygote",
    "valkey": b"valkey-server",
    "postgres": b"pginstall/bin/postgres\0-D",
}


def test_each_process_may_die_while_hosts_write(
    deployment: Deployment, shop: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """B1 (one site): every manager, agent and worker is a process of its own over real TCP. Each is
    killed in turn: replication goes on, nothing is lost, all of it agrees again by itself.
    """
    hosts = [shop, shop.tenant.join("hypervisor-2", _DISK_BYTES)]
    hosts.append(deployment.make_tenant("Initech").join("hypervisor-3", _DISK_BYTES))
    for host in hosts[1:]:
        host.protect("other")
    guests = [Guest(host, number) for number, host in enumerate(hosts, 2)]
    guests[0].model[:] = shop.disk.read_bytes()
    for part, words in PARTS.items():
        # The zygote is the oldest of its kind, an ingest that it made is the newest.
        pid = deployment.pid_of(words, is_newest=part == "ingest")
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        for guest in guests:
            guest.write(10)
        until(f"checkpoints after the death of {part}", partial(_take, hosts, part))
        with capsys.disabled():
            print(f"\n{part} killed: all hosts have a checkpoint after {_since(began)}", end="")
        assert deployment.pid_of(words, is_newest=part == "ingest") != pid
    for host, guest in zip(hosts, guests, strict=True):
        guest.write(5)
        host.checkpoint("last")
        assert host.restore("tag:last", "last").read_bytes() == bytes(guest.model)
        guest.close()


def _take(hosts: list[Host], part: str) -> bool:
    """A checkpoint on each now; what was asked of a process that died may have failed."""
    tag = {"tag": f"after {part}"}
    taken = [host.tenant.post(f"/v1/vpgs/{host.vpg}/checkpoints", tag) for host in hosts]
    ended = [host.tenant.ended(one) for host, one in zip(hosts, taken, strict=True)]
    return all(one["state"] == "succeeded" for one in ended)


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
