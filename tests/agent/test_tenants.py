"""Two tenants on a provider's host: placed, apart, replicating, withdrawn. Certificates renew."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host_agent.control import client
from host_agent.control.doctor import FAILED, OK, examine
from host_agent.wire.control import (
    PLACEMENT_FAILED,
    AssignedDisk,
    AssignedGroup,
    Event,
    Heartbeat,
    PathSource,
    Place,
    Withdraw,
)
from host_agent.wire.keys import make_data_key
from host_agent.wire.message import (
    ALPN,
    HEAD_BYTES,
    Hello,
    Welcome,
    pack,
    parse_body,
    parse_head,
)
from host_agent.wire.names import INGEST, Identity, server_name
from infra.demo.processes import Processes
from tests.agent.api import Api
from tests.agent.deployment import Deployment, HostSide, HostView, Manager, TenantSide, until
from tests.integration.nbd import NbdClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OWNER, PLACED = "host_owner", "host_placed"


@dataclass
class Shared:
    """A host of tenant 1, the provider here, on which tenants 2 and 3 are placed."""

    deployment: Deployment
    manager: Manager
    api: Api
    host: HostSide

    def place(self, owner: HostView, number: int) -> tuple[TenantSide, HostView]:
        """Place a tenant and wait until its own process has connected."""
        tenant = self.deployment.tenant(number)
        (self.host.disks / tenant.id).mkdir(parents=True, exist_ok=True)
        token = self.api.token(tenant, PLACED)
        doors = [f"localhost:{self.manager.port}"]
        answer = self.manager.command(owner, Place(tenant.id, token, doors))
        assert answer.outcome == "done", answer
        return tenant, self.manager.view(tenant, PLACED)

    def folder(self, tenant: TenantSide) -> Path:
        return self.host.identity / "tenants" / tenant.id

    def drain(self, tenant: TenantSide) -> None:
        """Wait until all that the tenant's group recorded is stored."""
        door = client.socket_of_identity(self.folder(tenant))

        def is_stored() -> bool:
            (group,) = client.ask(door, {"do": "status"})["groups"]
            return bool(group["state"] == "recording" and group["stored"] == group["head"])

        until(is_stored)

    def group(self, tenant: TenantSide, path: Path) -> AssignedGroup:
        disk = AssignedDisk("disk_1", "vda", "m", PathSource(str(path)))
        vpg = f"vpg_{tenant.id[4:]}"
        return AssignedGroup(vpg, "all", "protecting", 2.0, None, None, 8, [disk])

    def protect(self, tenant: TenantSide, view: HostView) -> AssignedGroup:
        """Protect one disk of the tenant."""
        path = self.host.make_disk("d", folder=self.host.disks / tenant.id)
        group = self.group(tenant, path)
        assert self.manager.assign(view, tenant, [group]).outcome == "done"
        self.manager.wait_facts(view, group.vpg, lambda f: f.sync == "in_sync")
        return group


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    folder = Path(tempfile.mkdtemp(prefix="hf-", dir="/dev/shm"))
    (folder / "logs").mkdir()
    (folder / "rings").mkdir()
    processes = Processes(folder / "logs")
    deployment = Deployment(folder, processes)
    manager = Manager(deployment)
    api = Api(deployment, manager.port)
    try:
        manager.start()
        host = HostSide(folder / "h", folder / "rings", processes, OWNER)
        deployment.write_identity(host.identity, deployment.tenant(1), OWNER, manager.port)
        facts = json.loads((host.identity / "identity.json").read_text()) | {"api": api.url}
        (host.identity / "identity.json").write_text(json.dumps(facts))
        host.write_settings(f'[placed]\nfolders = ["{host.disks}/{{tenant}}"]\n')
        host.start_tap()
        yield Shared(deployment, manager, api, host)
    finally:
        processes.stop_all()
        api.close()
        manager.close()
        shutil.rmtree(folder)


def test_two_tenants_on_one_host_are_apart(shared: Shared) -> None:
    manager, host, deployment = shared.manager, shared.host, shared.deployment
    host.start_agent()
    owner = manager.view(deployment.tenant(1), OWNER)
    (two, view2), (three, view3) = (shared.place(owner, number) for number in (2, 3))
    for tenant in (two, three):
        deployment.start_ingest(tenant)
        assert not (shared.folder(tenant) / "placement.json").exists(), "the token is used up"
        assert stat.S_IMODE(shared.folder(tenant).stat().st_mode) == 0o700
    group2, group3 = shared.protect(two, view2), shared.protect(three, view3)
    rng = random.Random(4)
    for view, group in ((view2, group2), (view3, group3)):
        facts = manager.wait_facts(view, group.vpg, lambda f: bool(f.disks and f.disks[0].uri))
        assert facts.disks[0].uri is not None
        with NbdClient(facts.disks[0].uri) as guest:
            guest.write(rng.randrange(0, 8 << 20, 4096), rng.randbytes(1 << 20))
            guest.flush()
    # Each sees its own groups alone, and its own disks.
    for view, group in ((view2, group2), (view3, group3)):
        assert {g.vpg for beat in view.of(Heartbeat) for g in beat.groups} == {group.vpg}
    # A manager of one may not have the other's disk protected.
    foreign = shared.group(two, host.disks / three.id / "d.raw")
    stolen = AssignedGroup("vpg_x", "x", "protecting", 5.0, None, None, 8, foreign.disks)
    manager.assign(view2, two, [group2, stolen])
    facts = manager.wait_facts(view2, "vpg_x", lambda f: bool(f.disks))
    assert facts.disks[0].state == "not_in_inventory"
    assert manager.assign(view2, two, [group2]).outcome == "done"
    _check_processes(shared, [two, three])
    _check_doors(shared, two, three)
    # Withdrawn, a tenant leaves nothing behind, and the other goes on.
    before = len(view3.of(Heartbeat))
    assert manager.command(owner, Withdraw(two.id)).outcome == "done"
    until(lambda: not shared.folder(two).exists())
    until(lambda: not [p for p in host.rings.iterdir() if group2.vpg in p.name])
    until(lambda: len(view3.of(Heartbeat)) > before + 3)
    assert manager.facts(view3, group3.vpg) is not None
    shared.drain(three)
    source = (host.disks / three.id / "d.raw").read_bytes()
    assert deployment.export(three, group3.vpg)["disk_1"] == source
    assert manager.command(owner, Withdraw(two.id)).outcome == "failed"
    assert host.agent is not None
    host.agent.stop()
    assert "Traceback" not in host.agent.log.read_text()


def _children(shared: Shared) -> list[int]:
    assert shared.host.agent is not None
    listed = Path(f"/proc/{shared.host.agent.pid}/task/{shared.host.agent.pid}/children")
    return [int(word) for word in listed.read_text().split()]


def _check_processes(shared: Shared, tenants: list[TenantSide]) -> None:
    """A process each; no process holds a key of another's. What one child has the parent never
    had: its memory is searched for the keys themselves."""
    children = _children(shared)
    assert len(children) == 1 + len(tenants)
    assert shared.host.agent is not None
    secrets = {tenant.id: _secret(shared.folder(tenant)) for tenant in tenants}
    holders = {tenant: set[int]() for tenant in secrets}
    for pid in [shared.host.agent.pid, *children]:
        memory = _memory(pid)
        for tenant, secret in secrets.items():
            if secret in memory:
                holders[tenant].add(pid)
    parts = list(holders.values())
    assert all(len(part) == 1 for part in parts), holders
    assert not parts[0] & parts[1]
    assert shared.host.agent.pid not in parts[0] | parts[1]


def _secret(folder: Path) -> bytes:
    """A key that only the tenant's process reads: what seals its data keys on the disk."""
    return (folder / "state" / "seal.key").read_bytes()


def _memory(pid: int) -> bytes:
    """All that the process has written to and may read again."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p ", line)
            if span is None:
                continue
            start, end = int(span[1], 16), int(span[2], 16)
            memory.seek(start)
            try:
                found.append(memory.read(end - start))
            except OSError:
                continue
    return b"".join(found)


def _check_doors(shared: Shared, two: TenantSide, three: TenantSide) -> None:
    """C2 at the agent's door: one tenant's credential with another's stream, refused either way."""
    pem = shared.folder(two) / "agent.pem"
    # Two's certificate at three's ingest: it does not believe two's authority.
    assert not _is_let_in(shared, three, pem, _hello(three, PLACED))
    # Two's certificate at two's ingest, with the name of three's stream.
    assert not _is_let_in(shared, two, pem, _hello(three, PLACED))
    # The control: its own stream of another group is let in.
    own = Identity(two.id, "vpg_new", PLACED)
    assert _is_let_in(shared, two, pem, _hello(two, PLACED, own))


def _hello(tenant: TenantSide, host: str, identity: Identity | None = None) -> dict[str, object]:
    identity = identity or Identity(tenant.id, f"vpg_{tenant.id[4:]}", host)
    generation = os.urandom(16)
    _, wrapped = make_data_key(tenant.group_key(identity.group), identity, generation)
    return {
        "version": 1,
        "software": "thief",
        "tenant": identity.tenant,
        "group": identity.group,
        "host": identity.host,
        "generation": generation.hex(),
        "predecessor": None,
        "freed": 0,
        "head": 0,
        "key": json.loads(wrapped),
        "commit_seconds": 1.0,
    }


def _is_let_in(shared: Shared, tenant: TenantSide, pem: Path, hello: dict[str, object]) -> bool:
    """Whether the tenant's ingest welcomes this HELLO from the holder of the certificate."""
    context = ssl.create_default_context(cafile=str(shared.deployment.root_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(pem)
    name = server_name(tenant.id, INGEST)
    raw = socket.create_connection(("127.0.0.1", tenant.port), timeout=60)
    try:
        with context.wrap_socket(raw, server_hostname=name) as door:
            door.sendall(pack(Hello(**hello)))  # type: ignore[arg-type]
            number, length = parse_head(_read(door, HEAD_BYTES))
            return isinstance(parse_body(number, _read(door, length)), Welcome)
    except OSError:
        return False


def _read(door: ssl.SSLSocket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = door.recv(length - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def test_why_a_placed_tenant_s_process_cannot_start_is_told_to_the_owner(shared: Shared) -> None:
    manager, host, deployment = shared.manager, shared.host, shared.deployment
    host.start_agent()
    owner, tenant = manager.view(deployment.tenant(1), OWNER), deployment.tenant(4)
    (host.disks / tenant.id).mkdir(parents=True, exist_ok=True)
    spent = shared.api.token(tenant, PLACED)
    del shared.api.tokens[spent]
    doors = [f"localhost:{manager.port}"]
    assert manager.command(owner, Place(tenant.id, spent, doors)).outcome == "done"
    until(lambda: bool(owner.of(Event)))
    event = owner.of(Event)[-1]
    assert (event.kind, event.subject) == (PLACEMENT_FAILED, tenant.id)
    assert event.data["code"] == "enrolment_failed"
    assert spent not in str(event.data)
    # A placement with a good token ends it.
    manager.command(owner, Place(tenant.id, shared.api.token(tenant, PLACED), doors))
    manager.view(tenant, PLACED)
    until(lambda: not (shared.folder(tenant) / "failure.json").exists())
    assert host.agent is not None
    host.agent.stop()


def test_certificates_renew_themselves_and_doctor_looks(shared: Shared) -> None:
    """At half of their life, and until then nothing; the running connection stays."""
    shared.api.renew_after = 43_200.0
    identity = shared.host.identity
    facts = json.loads((identity / "identity.json").read_text())
    facts |= {"api": shared.api.url, "renew_at": "2020-01-01T00:00:00+00:00"}
    facts["expires_at"] = "2020-01-01T12:00:00+00:00"
    (identity / "identity.json").write_text(json.dumps(facts))
    before, renewals = (identity / "agent.pem").read_bytes(), shared.api.renewals
    shared.host.start_agent()
    until(lambda: shared.api.renewals == renewals + 1)
    until(lambda: (identity / "agent.pem").read_bytes() != before)
    view = shared.manager.view(shared.deployment.tenant(1), OWNER)
    beats = len(view.of(Heartbeat))
    until(lambda: len(view.of(Heartbeat)) > beats + 2)
    assert shared.api.renewals == renewals + 1

    findings = {one.what: one for one in examine(identity)}
    for what in ("versions", "certificate", "tap", "api TLS", "control TLS", "clock"):
        assert findings[what].state == OK, findings[what]
    # Somebody who opens TLS between: another root than the join token's.
    other = Deployment(shared.deployment.folder, shared.deployment.processes)
    (identity / "root.crt").write_text(other.root.certificate_pem)
    (identity / "agent.pem").chmod(0o644)
    findings = {one.what: one for one in examine(identity)}
    assert findings["control TLS"].state == FAILED
    assert "Holdfast deployment root" in findings["control TLS"].said
    assert findings["permissions"].state == FAILED
    (identity / "agent.pem").chmod(0o600)
    (identity / "root.crt").write_text(shared.deployment.root.certificate_pem)
