"""A host that its manager drives: a real tap, a real agent, a real ingest, the real messages."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from host_agent.wire import control
from host_agent.wire.control import (
    AssignedDisk,
    AssignedGroup,
    Checkpoint,
    Discover,
    ForceSync,
    GroupFacts,
    Hello,
    Inventory,
    Limit,
    PathSource,
    Pause,
    Resume,
)
from infra.demo.processes import Processes
from tests.agent.deployment import Deployment, HostSide, HostView, Manager, TenantSide, until
from tests.agent.deployment import made_manager as open_manager
from tests.integration.nbd import NbdClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Scene:
    """A tenant, its manager, and one host."""

    deployment: Deployment
    tenant: TenantSide
    manager: Manager
    host: HostSide

    def connect(self) -> HostView:
        """Start the agent; what the manager knows of it."""
        self.host.start_agent()
        return self.manager.view(self.tenant, self.host.name)

    def protect(self, view: HostView, *groups: AssignedGroup) -> None:
        """Assign groups and wait until all of them are in sync."""
        answer = self.manager.assign(view, self.tenant, list(groups))
        assert answer.outcome == "done", answer
        for group in groups:
            self.manager.wait_facts(view, group.vpg, in_sync)

    def uri(self, view: HostView, vpg: str) -> str:
        """Where a group's first disk is served."""
        facts = self.manager.wait_facts(view, vpg, lambda f: bool(f.disks and f.disks[0].uri))
        assert facts.disks[0].uri is not None
        return facts.disks[0].uri

    def group(self, number: int, path: Path, **changes: object) -> AssignedGroup:
        """A group of one disk, by a name that no other test's group has."""
        disk = AssignedDisk(f"disk_{number}", "vda", f"machine {number}", PathSource(str(path)))
        vpg = f"vpg_{self.host.name[-13:]}{number:013d}"
        words = {"vpg": vpg, "name": f"group {number}", "state": "protecting"}
        numbers = {"rpo_seconds": 2.0, "replication_mbit_per_s": None, "sync_mbit_per_s": None}
        given = {**words, **numbers, "ring_mib": 8, "disks": [disk], **changes}
        return AssignedGroup(**given)  # type: ignore[arg-type]


def in_sync(facts: GroupFacts) -> bool:
    return facts.sync == "in_sync" and facts.phase == "streaming"


def _has_stored(seq: int, facts: GroupFacts) -> bool:
    return facts.stored_seq >= seq


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Deployment, Manager]]:
    """One tenant's service for all tests: its ingest starts once."""
    folder = Path(tempfile.mkdtemp(prefix="hf-", dir="/dev/shm"))
    (folder / "logs").mkdir()
    processes = Processes(folder / "logs")
    deployment = Deployment(folder, processes)
    try:
        with open_manager(deployment) as manager:
            deployment.start_ingest(deployment.tenant(1))
            yield deployment, manager
    finally:
        processes.stop_all()
        shutil.rmtree(folder)


@pytest.fixture
def scene(service: tuple[Deployment, Manager]) -> Iterator[Scene]:
    deployment, manager = service
    tenant = deployment.tenant(1)
    name = f"host_{len(manager.views):026d}"
    folder = deployment.folder / f"h{len(manager.views)}"
    (folder / "rings").mkdir(parents=True)
    processes = Processes(deployment.folder / "logs")
    host = HostSide(folder, folder / "rings", processes, name)
    manager.heartbeat_seconds, manager.takes_answers, manager.gives_keys = 0.2, True, True
    try:
        deployment.write_identity(host.identity, tenant, name, manager.port)
        host.write_settings()
        host.start_tap()
        yield Scene(deployment, tenant, manager, host)
        assert host.agent is None or "Traceback" not in host.agent.log.read_text()
    finally:
        processes.stop_all()
        shutil.rmtree(folder)


def test_commands_are_obeyed_once_and_in_order(scene: Scene) -> None:
    """Hello, inventory, an assignment, and each command with what it brings about."""
    manager = scene.manager
    disk = scene.host.make_disk("erp")
    view = scene.connect()
    hello = view.of(Hello)[0]
    assert (hello.epoch, hello.number, hello.assignment) == (0, 0, 0)
    until(lambda: bool(view.of(Inventory)))
    (machine,) = view.of(Inventory)[0].machines
    assert (machine.name, machine.disks[0].source) == ("erp", PathSource(str(disk)))

    one = scene.group(1, disk)
    scene.protect(view, one)
    rng = random.Random(1)
    with NbdClient(scene.uri(view, one.vpg)) as client:
        for _ in range(50):
            client.write(rng.randrange(0, 15 << 20, 4096), rng.randbytes(4096))
        client.flush()
    answer = manager.command(view, Checkpoint(one.vpg, "ab" * 16, "before"))
    assert answer.outcome == "done", answer
    assert answer.result is not None
    seq = int(str(answer.result["seq"]))
    facts = manager.wait_facts(view, one.vpg, lambda f: f.stored_seq >= seq)
    assert facts.generation == answer.result["generation"]
    assert facts.stored_source_time_ns is not None

    assert manager.command(view, Pause(one.vpg)).result == {"paused": True}
    manager.wait_facts(view, one.vpg, lambda f: f.phase == "paused")
    assert manager.command(view, Resume(one.vpg)).outcome == "done"
    manager.wait_facts(view, one.vpg, in_sync)
    assert manager.command(view, Limit(one.vpg, 800.0, 400.0)).outcome == "done"
    limits = scene.host.status()["groups"][0]["limits"]
    assert limits["replication_bytes_per_second"] == 100e6
    assert limits["sync_bytes_per_second"] == 50e6
    forced = manager.command(view, ForceSync(one.vpg, "disk_1"))
    assert forced.result == {"to_read_bytes": 16 << 20}
    assert manager.command(view, Discover()).result == {"machines": 1, "disks": 1}
    refused = manager.command(view, Pause("vpg_of_nobody"))
    assert refused.error is not None
    assert refused.error.code == "unknown_group"
    manager.wait_facts(view, one.vpg, in_sync)
    source = disk.read_bytes()
    assert scene.deployment.export(scene.tenant, one.vpg)["disk_1"] == source


def test_what_somebody_waits_for_is_told_at_once(scene: Scene) -> None:
    """That a group is in sync, and that the journal has a checkpoint: long before a heartbeat is
    due. The control: of a checkpoint that nobody waits for nothing is told.
    """
    manager = scene.manager
    manager.heartbeat_seconds = 3600
    one = scene.group(1, scene.host.make_disk("soon"))
    view = scene.connect()
    scene.protect(view, one)
    told: list[bool] = []
    with NbdClient(scene.uri(view, one.vpg)) as client:
        for number, is_awaited in enumerate((True, False), 1):
            client.write(4096 * number, b"data" * 1024)
            body = Checkpoint(one.vpg, f"{number:032x}", is_awaited=is_awaited)
            result = manager.command(view, body).result
            assert result is not None
            seq = int(str(result["seq"]))
            if is_awaited:
                manager.wait_facts(view, one.vpg, partial(_has_stored, seq))
            else:
                time.sleep(4)
            known = manager.facts(view, one.vpg)
            told.append(known is not None and _has_stored(seq, known))
    assert told == [True, False]
    assert scene.host.status()["groups"][0]["stored"] >= seq, "it was stored all the same"


def test_a_manager_that_was_replaced_is_not_obeyed(scene: Scene) -> None:
    """Not by this agent, and not by one that starts later: the number lies on the host's disk."""
    manager = scene.manager
    one = scene.group(1, scene.host.make_disk("a"))
    view = scene.connect()
    manager.epoch = 5
    scene.protect(view, one)
    stale = [(4, 999), (5, manager.number), (5, 0)]
    for epoch, number in stale:
        manager.send(view, control.command(epoch, number, Pause(one.vpg)))
        refusal = manager.answer(view, epoch, number)
        if refusal.outcome == "done":
            until(lambda e=epoch, n=number: manager.answer(view, e, n).outcome == "failed")  # type: ignore[misc]
            refusal = manager.answer(view, epoch, number)
        assert refusal.error is not None
        assert refusal.error.code == "epoch_stale"
    assert scene.host.agent is not None
    scene.host.agent.stop(signal.SIGKILL)
    connections = view.connections
    scene.host.start_agent()
    until(lambda: view.connections > connections)
    hello = view.of(Hello)[-1]
    assert (hello.epoch, hello.number, hello.assignment) == (5, manager.number, manager.version)
    manager.send(view, control.command(4, 1000, Pause(one.vpg)))
    refusal = manager.answer(view, 4, 1000)
    assert refusal.error is not None
    assert refusal.error.code == "epoch_stale"
    # The control: the manager of the day is obeyed.
    assert manager.command(view, Pause(one.vpg)).outcome == "done"
    manager.wait_facts(view, one.vpg, lambda f: f.phase == "paused")


def test_an_agent_that_starts_while_the_manager_is_away_replicates(scene: Scene) -> None:
    """With its assignment, its keys, its pause and its last limits."""
    manager = scene.manager
    one, two = (scene.group(n, scene.host.make_disk(f"d{n}")) for n in (1, 2))
    view = scene.connect()
    scene.protect(view, one, two)
    manager.command(view, Limit(one.vpg, 80.0, None))
    manager.command(view, Pause(two.vpg))
    manager.takes_answers = False
    kept = manager.command(view, Limit(two.vpg, 8.0, 8.0))
    uri = scene.uri(view, one.vpg)
    manager.away()
    assert scene.host.agent is not None
    scene.host.agent.stop(signal.SIGKILL)
    rng = random.Random(2)
    with NbdClient(uri) as client:
        client.write(0, rng.randbytes(1 << 20))
        scene.host.start_agent()
        client.write(4 << 20, rng.randbytes(1 << 20))
        client.flush()

    def is_stored() -> bool:
        groups = {g["group"]: g for g in scene.host.status()["groups"]}
        first = groups.get(one.vpg, {})
        return (first.get("state"), first.get("stored")) == ("recording", first.get("head"))

    until(is_stored)
    status = scene.host.status()
    groups = {g["group"]: g for g in status["groups"]}
    assert groups[one.vpg]["limits"]["replication_bytes_per_second"] == 10e6
    assert groups[two.vpg]["phase"] == "paused"
    assert status["manager"]["connected"] is False
    assert status["manager"]["answers_waiting"] == 1
    source = (scene.host.disks / "d1.raw").read_bytes()
    assert scene.deployment.export(scene.tenant, one.vpg)["disk_1"] == source
    # Back, it hears the answer again that it had not taken, and takes it.
    manager.takes_answers = True
    before = view.of(control.Answer).count(kept)
    manager.start()
    until(lambda: view.of(control.Answer).count(kept) == before + 1)
    until(lambda: scene.host.status()["manager"]["answers_waiting"] == 0)


def test_assignments_change_without_a_disturbance_of_other_groups(scene: Scene) -> None:
    """Groups and disks come and go, rates change: the first group's one connection stays."""
    manager = scene.manager
    disks = {name: scene.host.make_disk(name) for name in ("a", "b", "c")}
    one, two = scene.group(1, disks["a"]), scene.group(2, disks["b"])
    view = scene.connect()
    scene.protect(view, one)

    def connections() -> int:
        groups = {g["group"]: g for g in scene.host.status()["groups"]}
        return int(groups[one.vpg]["counters"]["connections"])

    assert connections() == 1
    scene.protect(view, one, two)
    extra = AssignedDisk("disk_3", "vdb", "machine 2", PathSource(str(disks["c"])))
    wider = scene.group(2, disks["b"], disks=[*two.disks, extra], replication_mbit_per_s=80.0)
    scene.protect(view, one, wider)
    manager.wait_facts(view, two.vpg, lambda f: {d.disk for d in f.disks} == {"disk_2", "disk_3"})
    manager.wait_facts(view, two.vpg, in_sync)
    paused = scene.group(2, disks["b"], state="paused")
    assert manager.assign(view, scene.tenant, [one, paused]).outcome == "done"
    manager.wait_facts(view, two.vpg, lambda f: f.phase == "paused" and len(f.disks) == 1)
    assert manager.assign(view, scene.tenant, [one]).outcome == "done"
    rings = scene.host.rings
    until(lambda: not [p for p in rings.iterdir() if two.vpg in p.name])
    keys = scene.host.identity / "state" / "groups" / two.vpg
    until(lambda: not keys.exists())
    assert connections() == 1
    # The control: another door is another connection.
    moved = manager.assign(view, scene.tenant, [one], doors=[f"localhost:{scene.tenant.port}"])
    assert moved.outcome == "done"
    until(lambda: connections() == 2)
    manager.wait_facts(view, one.vpg, in_sync)


def test_what_cannot_be_obeyed_is_refused_whole(scene: Scene) -> None:
    """Another host's assignment, a disk outside the inventory, a key that does not come."""
    manager, host = scene.manager, scene.host
    inside = host.make_disk("in")
    outside = host.make_disk("out", folder=host.folder / "elsewhere")
    (host.disks / "link.raw").symlink_to(outside)
    view = scene.connect()
    other = manager.assign(view, scene.tenant, [scene.group(1, inside)], host="host_of_another")
    assert other.error is not None
    assert other.error.code == "bad_assignment"
    for path in (outside, host.disks / "link.raw", host.disks / ".." / "elsewhere" / "out.raw"):
        manager.assign(view, scene.tenant, [scene.group(1, path)])
        vpg = scene.group(1, path).vpg
        facts = manager.wait_facts(view, vpg, lambda f: bool(f.disks))
        assert [d.state for d in facts.disks] == ["not_in_inventory"]
    manager.gives_keys = False
    manager.assign(view, scene.tenant, [scene.group(2, inside)])
    vpg = scene.group(2, inside).vpg
    until(lambda: bool(view.of(control.DataKeyRequest)))
    facts = manager.wait_facts(view, vpg, lambda f: bool(f.disks) and f.phase != "starting")
    assert facts.stored_seq == 0
    manager.gives_keys = True
    manager.wait_facts(view, vpg, in_sync)
