"""C5: one tenant sends all that it can, another's writes are stored within its policy all the same.

The noisy tenant's agents do not do as they are told: what they are told is one thing, what is held
against them another. The control: without a quota the same agents get far more stored.
"""

from __future__ import annotations

import random
import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from host_agent.wire.keys import TenantKey
from host_agent.wire.names import INGEST, Identity, server_name
from host_agent.wire.serving import Quotas
from tests.servers.agent import Agent, Closed, Source
from tests.servers.datanode import DataNode, Deployment, Tenant

_MIB = 1 << 20
_RATE = _MIB
_AGENTS = 2
#: The group's RPO of the smallest plan; its commits are asked for each 0.2 s.
_POLICY_SECONDS = 5.0


def agent_of(node: DataNode, tenant: Tenant, folder: Path, group: str) -> Agent:
    """A connected agent."""
    source = Source(Identity(tenant.id, group, "host1"), TenantKey.make(tenant.id))
    context = node.deployment.client(tenant.agent(folder, "host1"))
    return Agent(node.address, context, source, server_name(tenant.id, INGEST))


@dataclass
class Noisy:
    """An agent that writes without end and minds no limit."""

    agent: Agent
    stop: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def run(self) -> None:
        """Until told to stop."""
        data = random.Random(1).randbytes(_MIB)
        try:
            self.agent.socket.settimeout(120)
            while not self.stop.is_set():
                self.agent.source.write(1, data=data)
                self.agent.send_frame()
                while self._has_answer():
                    self.agent.read_message()
        except (Closed, OSError) as error:
            self.error = error

    def _has_answer(self) -> bool:
        line = self.agent.socket
        return line.pending() > 0 or bool(select.select([line], [], [], 0)[0])

    @property
    def stored_bytes(self) -> int:
        """What ingest confirmed."""
        return max(0, self.agent.stored - 1) * _MIB


@contextmanager
def noise(node: DataNode, tenant: Tenant, folder: Path, name: str) -> Iterator[list[Noisy]]:
    """Agents of the tenant that send all the time."""
    with ExitStack() as stack:
        made = []
        for number in range(_AGENTS):
            agent = agent_of(node, tenant, folder, f"{name}{number}")
            stack.callback(agent.leave)
            agent.hello()
            made.append(Noisy(agent))
        threads = [threading.Thread(target=one.run, daemon=True) for one in made]
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            for one in made:
                one.stop.set()
            for thread in threads:
                thread.join(120)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.invariant("I9", "I12")
def test_a_tenant_that_saturates_its_quota_does_not_delay_another(
    deployment: Deployment, tmp_path: Path
) -> None:
    """IN5: at the receiver no more than the quota comes in, and each agent was told its part."""
    quiet, noisy = deployment.tenant(), deployment.tenant()
    node = DataNode(deployment)
    try:
        node.keep(quiet)
        quotas = Quotas(bytes_per_second=_RATE)
        node.keep(noisy, deployment.record(noisy, quotas=quotas))
        node.start()
        with noise(node, noisy, tmp_path, "noisy") as agents:
            began = time.monotonic()
            delays = _write(node, quiet, tmp_path, seconds=8)
            stored, seconds = sum(one.stored_bytes for one in agents), time.monotonic() - began
            waits = _waits(node)
            parts = _parts(agents)
        assert max(delays) < _POLICY_SECONDS, sorted(delays)[-5:]
        # A second's burst, and the frame of each that may be owed.
        assert stored <= _RATE * (seconds + 1) + _AGENTS * _MIB
        assert stored > _RATE, "the noisy tenant did send"
        assert None not in parts, "each was told its part"
        assert all(0 < (part or 0) < _RATE for part in parts), parts
        assert waits > 0, "who does not mind its part is held"
    finally:
        node.clean()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_control_without_a_quota_the_same_agents_take_more(
    deployment: Deployment, tmp_path: Path
) -> None:
    noisy = deployment.tenant()
    node = DataNode(deployment)
    try:
        node.keep(noisy)
        node.start()
        with noise(node, noisy, tmp_path, "free") as agents:
            began = time.monotonic()
            while sum(one.stored_bytes for one in agents) < 12 * _RATE:
                assert time.monotonic() - began < 60, [one.error for one in agents]
                time.sleep(0.05)
            assert all(one.agent.part is None for one in agents)
            seconds = time.monotonic() - began
        # With the quota it would have taken longer than this.
        assert seconds < (12 * _RATE - _AGENTS * _MIB) / _RATE - 1
        assert _waits(node) == 0
    finally:
        node.clean()


def _write(node: DataNode, tenant: Tenant, folder: Path, seconds: float) -> list[float]:
    """A small write now and then; how long each took until it was stored."""
    agent = agent_of(node, tenant, folder, "quiet")
    delays = []
    try:
        agent.hello(commit_seconds=0.2)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            agent.source.write(1)
            began = time.monotonic()
            agent.send_frame()
            agent.wait_stored(seconds=60)
            delays.append(time.monotonic() - began)
            time.sleep(0.1)
    finally:
        agent.leave()
    assert agent.part is None, "it has no quota"
    return delays


def _parts(agents: list[Noisy]) -> list[int | None]:
    """What each was told: an agent that is held reads nothing until its frame is taken."""
    ends = time.monotonic() + 60
    while any(one.agent.part is None for one in agents) and time.monotonic() < ends:
        time.sleep(0.05)
    return [one.agent.part for one in agents]


def _waits(node: DataNode) -> int:
    services = node.status()["services"]
    return sum(int(one["status"].get("quota_waits", 0)) for one in services)
