"""One cloud, two enterprises: A with a host of 5 machines, B with two of 5 each; cloud 1 runs 6
machines of both, cloud 2 runs 2 of B. Every agent, tap and manager is a process of its own.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
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
from tests.integration.cloud import (
    CloudHost,
    Group,
    cloud_host,
    grant,
    make_disks,
    make_pool,
)
from tests.integration.deployment import (
    Deployment,
    Host,
    Refused,
    Tenant,
    descendants,
    running_deployment,
    until,
)

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("service")]

#: A's machine in a group of its own, for connections that somebody else than its agent makes.
PROBE = "a-probe"


@dataclass
class Fixture:
    """Who is where."""

    deployment: Deployment
    a: Tenant
    b: Tenant
    home: Host
    clouds: list[CloudHost]
    placements: dict[str, str]
    groups: dict[str, Group]


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(1, count + 1)]


def _own_host(tenant: Tenant, name: str, prefix: str) -> Host:
    """A host of the tenant's with five machines."""
    folder = tenant.deployment.folder / name
    make_disks(folder / "disks", _names(prefix, 5))
    host = Host(tenant.deployment, name, folder, tenant=tenant)
    host.join()
    host.start()
    return host


@pytest.fixture(scope="module")
def world() -> Iterator[Fixture]:
    with running_deployment() as deployment:
        a, b = deployment.make_tenant("A"), deployment.make_tenant("B")
        home = _own_host(a, "a-host", "a-home")
        offices = [_own_host(b, f"b-host-{n}", f"b-office-{n}") for n in (1, 2)]
        pools = [make_pool(deployment, f"cloud {number}") for number in (1, 2)]
        clouds = [cloud_host(deployment, f"cloud-{n}", pool) for n, pool in enumerate(pools, 1)]
        for tenant in (a, b):
            grant(deployment, tenant, *pools)
        placed = {
            "a at 1": (a, clouds[0], [*_names("a-cloud", 2), PROBE]),
            "b at 1": (b, clouds[0], _names("b-cloud-1", 3)),
            "b at 2": (b, clouds[1], _names("b-cloud-2", 2)),
        }
        placements = {
            name: cloud.place(tenant, machines)
            for name, (tenant, cloud, machines) in placed.items()
        }
        wanted = {
            "a at home": (a, home, _names("a-home", 5)),
            **{f"b in {n}": (b, offices[n - 1], _names(f"b-office-{n}", 5)) for n in (1, 2)},
            **placed,
        }
        wanted["a at 1"] = (a, clouds[0], _names("a-cloud", 2))
        wanted["probe"] = (a, clouds[0], [PROBE])
        groups = {
            name: Group(tenant, host, machines, seed)
            for seed, (name, (tenant, host, machines)) in enumerate(wanted.items())
        }
        yield Fixture(deployment, a, b, home, clouds, placements, groups)


def test_each_enterprise_sees_its_machines_and_pools_never_the_cloud_s_hosts(
    world: Fixture,
) -> None:
    for tenant, own, placed in ((world.a, 5, {3}), (world.b, 10, {3, 2})):
        machines = tenant.get("/v1/machines?limit=200")["items"]
        assert sum(one["host_id"] is not None for one in machines) == own
        pools = tenant.get("/v1/pools")["items"]
        assert {pool["machines_used"] for pool in pools if pool["machines_used"]} == placed
        by_pool = {
            pool["id"]: sum(one["pool_id"] == pool["id"] for one in machines) for pool in pools
        }
        assert by_pool == {pool["id"]: pool["machines_used"] for pool in pools}
        hosts = [one["name"] for one in tenant.get("/v1/hosts")["items"]]
        assert not [name for name in hosts if name.startswith("cloud")]
        events = json.dumps(tenant.get("/v1/events?limit=200"))
        assert not [cloud.id for cloud in world.clouds if cloud.id in events]


def test_each_placed_tenant_has_a_process_a_connection_and_keys_of_its_own(
    world: Fixture,
) -> None:
    for cloud, tenants in ((world.clouds[0], (world.a, world.b)), (world.clouds[1], (world.b,))):
        assert cloud.agent is not None
        assert len(list(descendants(cloud.agent.pid))) == 1 + len(tenants)
        names = [path.name for path in (cloud.folder / "identity/tenants").iterdir()]
        assert sorted(names) == sorted(tenant.id for tenant in tenants)
        for tenant in tenants:
            facts = json.loads((cloud.identity_of(tenant) / "identity.json").read_text())
            assert facts["tenant_id"] == tenant.id
            assert facts["host_id"] != cloud.id


def test_every_group_is_brought_back_as_it_was(world: Fixture) -> None:
    """A's cloud machines at A's own host, B's of cloud 1 in the pool of cloud 2."""
    for group in world.groups.values():
        group.write()
        group.checkpoint("before")
    wanted = {name: {m: bytes(d) for m, d in g.model.items()} for name, g in world.groups.items()}
    for group in world.groups.values():
        group.write(5)
        group.checkpoint("after")
    back = world.groups["a at 1"].restore(
        "tag:before", world.home.folder / "back", host_id=world.home.id
    )
    assert back == wanted["a at 1"]
    target = world.clouds[1]
    folder = target.folder / "restored" / world.b.id / "back"
    back = world.groups["b at 1"].restore("tag:before", folder, pool_id=target.pool_id)
    assert back == wanted["b at 1"]
    back = world.groups["b at 2"].restore(
        "latest", target.folder / "restored" / world.b.id / "newest", pool_id=target.pool_id
    )
    assert back == {name: bytes(data) for name, data in world.groups["b at 2"].model.items()}
    with pytest.raises(Refused) as refused:
        world.a.post(
            f"/v1/vpgs/{world.groups['b at 1'].id}:restore",
            {"directory": "/x", "pool_id": target.pool_id},
        )
    assert refused.value.status == 404


def test_a_s_credential_with_b_s_stream_is_refused_at_ingest_itself(world: Fixture) -> None:
    """C2: neither at B's ingest nor at A's own does A's certificate open a stream of B's; the
    control, a stream of its own, is let in.
    """
    cloud = world.clouds[0]
    pem = cloud.identity_of(world.a) / "agent.pem"
    own = _identity_of(cloud, world.a, world.groups["probe"].id)
    foreign = _identity_of(cloud, world.b, world.groups["b at 1"].id)
    assert not _is_let_in(world, world.b, pem, foreign)
    assert not _is_let_in(world, world.a, pem, foreign)
    assert not _is_let_in(world, world.b, pem, own)
    # Its own group, but of another of its hosts.
    other = Identity(world.a.id, world.groups["a at home"].id, world.home.id)
    assert not _is_let_in(world, world.a, pem, other)
    assert _is_let_in(world, world.a, pem, own)


def _identity_of(cloud: CloudHost, tenant: Tenant, group: str) -> Identity:
    facts = json.loads((cloud.identity_of(tenant) / "identity.json").read_text())
    return Identity(tenant.id, group, facts["host_id"])


def _is_let_in(world: Fixture, tenant: Tenant, pem: Path, identity: Identity) -> bool:
    """Whether this tenant's ingest welcomes the stream from the holder of the certificate."""
    context = ssl.create_default_context(cafile=str(world.deployment.state / "root.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(pem)
    raw = socket.create_connection(("127.0.0.1", world.deployment.doors[2]), timeout=60)
    try:
        with context.wrap_socket(raw, server_hostname=server_name(tenant.id, INGEST)) as door:
            door.sendall(pack(_hello(identity)))
            number, length = parse_head(_read(door, HEAD_BYTES))
            return isinstance(parse_body(number, _read(door, length)), Welcome)
    except OSError:
        return False


def _hello(identity: Identity) -> Hello:
    generation = os.urandom(16)
    key = GroupKey.make(TenantKey.make(identity.tenant), identity.group)
    _, wrapped = make_data_key(key, identity, generation)
    return Hello(
        version=1,
        software="thief",
        tenant=identity.tenant,
        group=identity.group,
        host=identity.host,
        generation=generation.hex(),
        predecessor=None,
        freed=0,
        head=0,
        key=json.loads(wrapped),
        commit_seconds=1.0,
    )


def _read(door: ssl.SSLSocket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = door.recv(length - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def test_a_withdrawn_enterprise_is_gone_within_30_seconds_and_the_other_goes_on(
    world: Fixture,
) -> None:
    cloud = world.clouds[0]
    pem = cloud.folder / "kept.pem"
    pem.write_bytes((cloud.identity_of(world.a) / "agent.pem").read_bytes())
    own = _identity_of(cloud, world.a, world.groups["probe"].id)
    placement = world.placements["a at 1"]
    plan = cloud.ask("POST", f"placements/{placement}:plan")
    assert [(one["groups"], one["machines"]) for one in plan["effects"]] == [(2, 3)]
    cloud.ask("POST", f"placements/{placement}:withdraw", {"plan_id": plan["id"]})
    until("ingest refuses A", lambda: not _is_let_in(world, world.a, pem, own), seconds=30)
    until(
        "the host has forgotten A",
        lambda: cloud.ask("GET", f"placements/{placement}")["state"] == "withdrawn",
    )
    until("its folder is gone", lambda: not cloud.identity_of(world.a).exists())
    other = world.groups["b at 1"]
    other.write(5)
    other.checkpoint("still there")
    # The journal stays: A has its machines back as they were, at home.
    last = {name: bytes(data) for name, data in world.groups["a at 1"].model.items()}
    back = world.groups["a at 1"].restore(
        "latest", world.home.folder / "last", host_id=world.home.id
    )
    assert back == last
