"""The line to the control plane: records down and at once in force, certificates and facts up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from host_agent.wire.nodecontrol import StreamFacts
from host_agent.wire.serving import HostRight
from tests.servers.agent import Closed
from tests.servers.datanode import DataNode, Deployment
from tests.servers.manager import Manager, running_manager
from tests.supervisor.test_alone import agent_of, is_refused, replicates
from workers.supervisor.command import BadSettings, read_settings
from workers.supervisor.identity import renewal_of


@pytest.fixture
def manager(deployment: Deployment, tmp_path: Path) -> Iterator[Manager]:
    with running_manager(deployment, tmp_path) as running:
        yield running


@pytest.fixture
def node(deployment: Deployment, manager: Manager) -> Iterator[DataNode]:
    """A data node with an empty folder but for its own identity."""
    made = DataNode(deployment, manager.address)
    try:
        made.start()
        yield made
        assert "Traceback" not in made.log, made.log
    finally:
        made.clean()


def ready(node: DataNode, count: int = 1) -> None:
    """Wait until the node has so many tenants with their certificates."""
    node.wait_for(
        lambda: sum(len(kept.identities) == 2 for kept in node.records.load()) == count,  # type: ignore[union-attr]
        "the certificates did not come",
    )


@pytest.mark.invariant("I9")
def test_what_a_node_is_told_holds_at_once_and_is_kept(
    deployment: Deployment, manager: Manager, node: DataNode, tmp_path: Path
) -> None:
    tenant = deployment.tenant()
    assert manager.wait().records == {}
    hosts = [HostRight(host, ["*"]) for host in ("host1", "host2")]
    manager.tell(deployment.record(tenant, 1, hosts=hosts), only=[tenant.id])
    ready(node)
    with (
        agent_of(node, tenant, tmp_path, "live") as agent,
        agent_of(node, tenant, tmp_path, "live", host="host2") as other,
    ):
        for one in (agent, other):
            one.hello()
            one.send_frame()
            one.wait_stored(seconds=60)
        began = time.monotonic()
        manager.tell(deployment.record(tenant, 2, hosts=hosts[1:], denied=["host1"]))
        close = agent.wait_close(60)
        took = time.monotonic() - began
        assert close is not None
        assert close.code == "not_authorised"
        assert took < 30, took
        with pytest.raises(TimeoutError):  # whoever is still allowed stays connected
            other.read_until(lambda: False, 2)
    with agent_of(node, tenant, tmp_path, "live") as agent:
        assert is_refused(agent)
    # An older record does not let it in again.
    manager.tell(deployment.record(tenant, 1, hosts=hosts))
    with agent_of(node, tenant, tmp_path, "live") as agent:
        assert is_refused(agent)
    # Nor does the end of the node.
    node.kill()
    node.start()
    assert manager.wait(2).records == {tenant.id: 2}
    with agent_of(node, tenant, tmp_path, "live") as agent:
        assert is_refused(agent)


def test_facts_go_up_and_the_node_comes_back(
    deployment: Deployment, manager: Manager, node: DataNode, tmp_path: Path
) -> None:
    tenant = deployment.tenant()
    manager.tell(deployment.record(tenant), only=[tenant.id])
    ready(node)
    assert {(one.tenant, one.service) for one in manager.requests} == {
        (tenant.id, "ingest"),
        (tenant.id, "restore"),
    }
    with agent_of(node, tenant, tmp_path, "told") as agent:
        agent.hello()
        agent.send_frame()
        agent.wait_stored(seconds=60)
        stream = _stored(manager, agent.stored)
        assert (stream.tenant, stream.vpg, stream.host) == (tenant.id, "told", "host1")
        assert stream.generation == agent.source.generation.hex()
        assert (stream.epoch, stream.connected) == (1, True)
        assert stream.source_time_ns == int(agent.source.records["time"][-1])
        manager.drop()
        manager.wait(2)
        assert _stored(manager, agent.stored) == stream  # all of them, on each connection


def _stored(manager: Manager, seq: int) -> StreamFacts:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for stream in manager.facts.get(timeout=60).streams:
            if stream.stored_seq == seq:
                return stream
    raise AssertionError("it was not told")


def test_a_tenant_that_is_served_no_longer_is_forgotten(
    deployment: Deployment, manager: Manager, node: DataNode, tmp_path: Path
) -> None:
    gone, stays = deployment.tenant(), deployment.tenant()
    manager.tell(deployment.record(gone), deployment.record(stays), only=[gone.id, stays.id])
    ready(node, 2)
    with agent_of(node, gone, tmp_path, "g") as agent:
        agent.hello()
        manager.tell(only=[stays.id])
        close = agent.wait_close(60)
        assert close is None or close.code == "stopping"
    node.wait_for(lambda: node.status()["tenants"] == 1, "it still serves it")
    assert [file.stem for file in node.directory.glob("*.record")] == [stays.id]
    with pytest.raises((ConnectionError, OSError, Closed)), agent_of(node, gone, tmp_path, "g"):
        pass
    replicates(node, stays, tmp_path, "s")


GOOD = {
    "HOLDFAST_DATANODE_DIRECTORY": "/var/lib/holdfast",
    "HOLDFAST_DATANODE_LISTEN": "[::]:7440",
    "HOLDFAST_CONTROL_DOORS": "a.example:7442, b.example:7442",
}


def test_settings_are_read_from_the_environment() -> None:
    settings = read_settings(GOOD)
    assert settings.listen == ("::", 7440)
    assert settings.control_doors == (("a.example", 7442), ("b.example", 7442))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_DATANODE_DIRECTORY", ""),
        ("HOLDFAST_DATANODE_LISTEN", "7440"),
        ("HOLDFAST_DATANODE_LISTEN", "x:99999"),
        ("HOLDFAST_CONTROL_DOORS", "a:1,,"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(BadSettings) as wrong:
        read_settings({**GOOD, name: value})
    assert name in wrong.value.message


def test_a_certificate_is_renewed_at_half_of_its_life(deployment: Deployment) -> None:
    door = deployment.door(deployment.tenant())
    half = datetime.now(UTC) + timedelta(days=45)
    assert abs(renewal_of(door.certificate) - half) < timedelta(hours=1)
