"""A data node with nobody above it: what it keeps, for how long it goes on, and what leaks not."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from host_agent.wire.keys import TenantKey
from host_agent.wire.names import INGEST, Identity, server_name
from host_agent.wire.serving import HostRight, StoreAccess
from tests.servers.agent import Agent, Closed, Source
from tests.servers.datanode import DataNode, Deployment, Tenant, running_node
from workers.supervisor.record import (
    KEY_FILE,
    Kept,
    RecordStore,
    RecordUnreadable,
    supersede,
    with_identity,
    with_probed,
)


@pytest.fixture
def tenant(deployment: Deployment) -> Tenant:
    return deployment.tenant()


@contextlib.contextmanager
def agent_of(
    node: DataNode, tenant: Tenant, folder: Path, group: str, host: str = "host1"
) -> Iterator[Agent]:
    """A connected agent with five writes to send."""
    key = TenantKey.make(tenant.id)
    source = Source(Identity(tenant.id, group, host), key, random.Random(5))
    source.write(5)
    context = node.deployment.client(tenant.agent(folder, host))
    agent = Agent(node.address, context, source, server_name(tenant.id, INGEST))
    try:
        yield agent
    finally:
        agent.leave()


def replicates(node: DataNode, tenant: Tenant, folder: Path, group: str) -> None:
    """A host's writes get stored."""
    with agent_of(node, tenant, folder, group) as agent:
        agent.hello()
        agent.send_frame()
        agent.wait_stored(seconds=60)


def ingest_status(node: DataNode) -> dict[str, Any]:
    """What the first tenant's ingest says of itself."""
    services = node.status()["services"]
    return dict(services[0]["status"]) if services else {}


def is_refused(agent: Agent) -> bool:
    """Whether HELLO is answered by the end of the connection and nothing else."""
    try:
        agent.hello()
    except (Closed, ConnectionError) as end:
        return not isinstance(end, Closed) or end.close is None
    return False


# --- what is kept


def test_records_are_sealed_and_read_back(
    deployment: Deployment, tenant: Tenant, tmp_path: Path
) -> None:
    store = RecordStore.open(tmp_path / "node")
    access = StoreAccess("s3://b", "static", "id", "c4n4ry-secret")
    kept = Kept(deployment.record(tenant, 3, store=access))
    kept = with_probed(with_identity(kept, INGEST, deployment.door(tenant)))
    store.save(kept)
    assert list(RecordStore.open(tmp_path / "node").load()) == [kept]
    for file in (tmp_path / "node").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"c4n4ry" not in file.read_bytes()
    assert "c4n4ry" not in repr(kept)
    assert "PRIVATE" not in repr(kept)


def test_a_record_opens_only_whole_in_its_place_and_by_its_own_key(
    deployment: Deployment, tmp_path: Path
) -> None:
    store, one, other = RecordStore.open(tmp_path), deployment.tenant(), deployment.tenant()
    store.save(Kept(deployment.record(one)))
    file = tmp_path / f"{one.id}.record"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20] + b"x" + whole[21:], b"HFNR\x02" + whole[5:]):
        file.write_bytes(damaged)
        (found,) = store.load()
        assert isinstance(found, RecordUnreadable)
    file.write_bytes(whole)
    file.rename(tmp_path / f"{other.id}.record")
    assert [type(found) for found in store.load()] == [RecordUnreadable]
    (tmp_path / KEY_FILE).write_bytes(bytes(32))
    assert [type(found) for found in RecordStore.open(tmp_path).load()] == [RecordUnreadable]


def test_a_record_that_could_not_be_replaced_is_as_it_was(
    deployment: Deployment, tenant: Tenant, tmp_path: Path
) -> None:
    store = RecordStore.open(tmp_path)
    store.save(Kept(deployment.record(tenant, 1)))
    (tmp_path / f"{tenant.id}.record.part").mkdir()  # as a disk that refuses would
    with pytest.raises(OSError):
        store.save(Kept(deployment.record(tenant, 2)))
    (kept,) = store.load()
    assert isinstance(kept, Kept)
    assert kept.record.version == 1


def test_only_a_newer_record_is_taken_and_another_store_is_tried_anew(
    deployment: Deployment, tenant: Tenant
) -> None:
    kept = with_probed(Kept(deployment.record(tenant, 5)))
    assert supersede(kept, deployment.record(tenant, 5)) is None
    assert supersede(kept, deployment.record(tenant, 4)) is None
    same = supersede(kept, deployment.record(tenant, 6))
    assert same is not None
    assert same.probed == tenant.store
    moved = deployment.record(tenant, 7, store=StoreAccess("file:///elsewhere", "folder"))
    other = supersede(same, moved)
    assert other is not None
    assert other.probed is None


# --- days without a control plane


def days_later(days: int) -> dict[str, str]:
    """The environment of a process that lives some days later than we do."""
    spec = find_spec("libfaketime")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    library = Path(spec.submodule_search_locations[0], "vendor/libfaketime/src/libfaketime.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{days:+d}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextlib.contextmanager
def at_a_later_time(node: DataNode, days: int) -> Iterator[DataNode]:
    """The node and its processes live some days later than we do."""
    node.start(days_later(days))
    try:
        yield node
    finally:
        node.stop()


@pytest.mark.invariant("I9")
def test_three_days_alone_and_started_again_it_goes_on_and_who_was_denied_stays_out(
    deployment: Deployment, tenant: Tenant, tmp_path: Path
) -> None:
    """The hosts' certificates ran out two days ago; nobody could renew them."""
    node = DataNode(deployment)
    try:
        hosts = [HostRight(host, ["*"]) for host in ("host1", "denied")]
        node.keep(tenant, deployment.record(tenant, hosts=hosts, denied=["denied"]))
        with at_a_later_time(node, 3):
            with agent_of(node, tenant, tmp_path, "later") as agent:
                agent.hello()
                agent.send_frame()
                agent.wait_stored(seconds=60)
                node.wait_for(
                    lambda: ingest_status(node).get("sessions_with_late_certificate") == 1,
                    "it does not say that a certificate is late",
                )
            assert "event=certificate_late" in node.log
            with agent_of(node, tenant, tmp_path, "later", host="denied") as agent:
                assert is_refused(agent)
        with at_a_later_time(node, 9), agent_of(node, tenant, tmp_path, "later") as agent:
            assert is_refused(agent)
            node.wait_for(lambda: "is not valid at this time" in node.log, "no reason is given")
    finally:
        node.clean()


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("days", [365, -365])
def test_a_clock_that_is_a_year_off_stores_nothing_says_why_and_does_no_harm(
    deployment: Deployment, tenant: Tenant, tmp_path: Path, days: int
) -> None:
    node = DataNode(deployment)
    try:
        node.keep(tenant)
        node.start()
        replicates(node, tenant, tmp_path, "before")
        node.stop()
        journal = Path(tenant.store.removeprefix("file://")) / tenant.id
        before = {file: file.read_bytes() for file in journal.rglob("*") if file.is_file()}
        with at_a_later_time(node, days):
            with agent_of(node, tenant, tmp_path, "meanwhile") as agent:
                assert is_refused(agent)
            node.wait_for(lambda: "is not valid at this time" in node.log, "no reason is given")
        assert {file: file.read_bytes() for file in before} == before
        node.start()
        replicates(node, tenant, tmp_path, "after")
    finally:
        node.clean()


# --- what no process may know


def memory_of(pid: int) -> bytes:
    """All that a process could write: heap, stacks, what it shares with its parent."""
    found = []
    with (
        open(f"/proc/{pid}/maps", encoding="ascii") as maps,
        open(f"/proc/{pid}/mem", "rb", 0) as memory,
    ):
        for line in maps:
            where, rights, *_ = line.split()
            start, end = (int(text, 16) for text in where.split("-"))
            if "w" not in rights or "[vvar" in line:
                continue
            with contextlib.suppress(OSError, OverflowError):
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"".join(found)


@pytest.mark.root
@pytest.mark.invariant("I9")
def test_no_process_has_a_secret_of_another_tenant_in_its_memory(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The positive control: its own it has, and so the search finds what is there."""
    tenants = [deployment.tenant() for _ in range(3)]
    canaries = [f"c4n4ry-{number}-{os.urandom(12).hex()}" for number in range(3)]
    node = DataNode(deployment)
    try:
        for tenant, canary in zip(tenants, canaries, strict=True):
            access = StoreAccess(tenant.store, "folder", "id", canary)
            node.keep(tenant, deployment.record(tenant, store=access))
        node.start()
        for tenant in tenants:
            replicates(node, tenant, tmp_path, "scan")
        children = [memory_of(node.pid_of(INGEST, tenant.id)) for tenant in tenants]
        nobody = [memory_of(node.pid_of(what)) for what in ("router", "zygote")]
        # A line of each key, as PEM has it.
        keys = {}
        for kept in node.records.load():
            assert isinstance(kept, Kept)
            keys[kept.record.tenant] = kept.identities[INGEST].key.splitlines()[1]
    finally:
        node.clean()
    for number, tenant in enumerate(tenants):
        secrets = (canaries[number].encode(), keys[tenant.id].encode())
        for other, memory in enumerate(children):
            for secret in secrets:
                assert (secret in memory) == (other == number), (number, other)
        assert not any(secret in memory for memory in nobody for secret in secrets)


def test_an_orderly_end_leaves_no_process_behind(
    deployment: Deployment, tenant: Tenant, tmp_path: Path
) -> None:
    with (
        running_node(deployment, tenant) as node,
        agent_of(node, tenant, tmp_path, "ending") as agent,
    ):
        agent.hello()
        agent.send_frame()
        node.wait_for(lambda: "received" in str(ingest_status(node)), "it reports nothing")
        node.wait_for(lambda: ingest_status(node)["streams"][0]["received"], "nothing came")
        pids = [node.pid_of("router"), node.pid_of("zygote"), node.pid_of(INGEST, tenant.id)]
        began = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began < 20
        close = agent.wait_close(20)
        assert close is not None
        assert close.code == "stopping"
        assert agent.stored == agent.sent  # what was received was committed first
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
