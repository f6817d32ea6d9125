"""Each process of a data node is killed while a real agent writes: replication goes on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_agent.wire.names import INGEST, server_name
from host_agent.wire.serving import HostRight
from tests.content import difference
from tests.integration.place import Place, made_place
from tests.integration.site import GROUP
from tests.integration.test_kills import fio_load
from tests.servers.datanode import DataNode, Deployment, Tenant
from workers.supervisor.state import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    DEATHS_TOLD,
    GOOD_SECONDS,
    Life,
    Waiting,
)

_LOAD_SECONDS = 12


@pytest.fixture
def tenant(deployment: Deployment, tmp_path: Path) -> Tenant:
    made = deployment.tenant()
    made.store = f"file://{tmp_path}/bucket"
    return made


@pytest.fixture
def place(
    deployment: Deployment, tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A host of the tenant, with a tap and an agent, whose streams go to a data node."""
    monkeypatch.setattr("tests.integration.site.TENANT", tenant.id)
    with made_place(tmp_path) as made:
        setup = made.site.setup
        files = tenant.agent(tmp_path, setup.host)
        for file, name in zip(files, ("agent.crt", "agent.key"), strict=True):
            shutil.copy(file, setup.path(name))
        shutil.copy(deployment.ca, setup.path("ca.crt"))
        agent_toml = setup.path("agent.toml")
        name = server_name(tenant.id, INGEST)
        agent_toml.write_text(agent_toml.read_text().replace('"localhost"', f'"{name}"'))
        yield made


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.invariant("I1", "I2", "I14")
def test_every_process_of_a_node_is_killed_and_nothing_is_lost(
    deployment: Deployment, tenant: Tenant, place: Place
) -> None:
    node = DataNode(deployment)
    try:
        right = HostRight(place.site.setup.host, [GROUP])
        node.keep(tenant, deployment.record(tenant, hosts=[right]))
        node.address = ("127.0.0.1", place.site.setup.port)
        node.start()
        place.site.start_host()
        uri = place.site.attach()
        place.site.wait_protected(lambda _now: None)
        fio = fio_load(uri, place.folder, _LOAD_SECONDS)
        for what in ("router", INGEST, "zygote", INGEST, "router"):
            pid = node.pid_of(what, tenant.id if what == INGEST else None)
            os.kill(pid, signal.SIGKILL)
            node.wait_for(
                lambda what=what, pid=pid: (  # type: ignore[misc]
                    node.pid_of(what, tenant.id if what == INGEST else None) != pid
                ),
                f"{what} was not started again",
            )
        status = node.status()
        assert "signal 9" in status["router"]["last_end"]
        node.kill()  # the supervisor itself: its children notice and end
        node.start()
        said, _ = fio.communicate(timeout=120)
        assert fio.returncode == 0, said
        place.drain()
        node.stop()
        source = place.lose()
        assert difference(place.export("latest-write"), source) == ""
    finally:
        node.clean()


def test_a_process_that_dies_is_started_again_after_a_growing_wait() -> None:
    life, now, waits = Life(), 0.0, []
    for _ in range(12):
        life.started(now)
        waits.append(life.died(now + 0.01, "signal 9"))
        now = life.due_at
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == BACKOFF_SECONDS_MAX
    assert life.dies_often(now)
    assert (life.restarts, life.reason) == (12, "signal 9")
    life.started(now)
    assert life.died(now + GOOD_SECONDS, "signal 9") == BACKOFF_SECONDS_MIN


def test_few_deaths_and_deaths_of_long_ago_are_not_told() -> None:
    life = Life()
    for number in range(DEATHS_TOLD - 1):
        life.died(float(number), "x")
    assert not life.dies_often(10.0)
    life.died(9.0, "x")
    assert life.dies_often(10.0)
    assert not life.dies_often(10_000.0)


def test_one_address_does_not_take_the_room_of_others() -> None:
    waiting = Waiting(all_max=3, address_max=2)
    assert [waiting.enter("a") for _ in range(3)] == [True, True, False]
    assert [waiting.enter("b"), waiting.enter("c")] == [True, False]
    waiting.leave("a")
    assert waiting.enter("c")
    for address in ("a", "b", "c"):
        waiting.leave(address)
    assert (waiting.count, waiting.by_address) == (0, {})
