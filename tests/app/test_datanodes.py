"""Data nodes: added, joined by a token, drained; what they are told of tenants, and by whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from httpx2 import Response

from app.datanodes.gateway import NodeGateway, NodeRefused, NodeTools
from app.datanodes.plan import NodePlace, choose_doors
from app.datanodes.service import doors_of_tenant
from app.kit.ids import Kind, parse
from app.rights.territory import may_hold
from host_agent.wire import control
from host_agent.wire.names import datanode_san, server_name
from host_agent.wire.nodecontrol import (
    CertificateRequest,
    FromManager,
    FromNode,
    NodeCertificate,
    NodeFacts,
    NodeHello,
    NodeWelcome,
    Records,
    StreamFacts,
    decode_from_manager,
)
from host_agent.wire.serving import ServingRecord, decode_record
from tests.app.joining import Key, join_host, make_key, request_of
from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio
FOLDER = {"name": "default", "territory": "CH", "url": "file:///journals", "wall": "folder"}


async def add_node(service: Service, name: str = "node", **options: Any) -> dict[str, Any]:
    """A data node that has not joined."""
    wanted = {"name": name, "territory": "CH", "doors": [f"{name}:7440"], **options}
    answer = await service.provider.post("/v1/provider/data-nodes", wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def join(service: Service, token: str, request: str) -> Response:
    """Join with a token."""
    body = {"certificate_request": request, "agent_version": "1.0"}
    return await service.caller(token).post("/v1/data-node-enrolments", body)


async def joined_node(
    service: Service, name: str = "node", **options: Any
) -> tuple[str, x509.Certificate]:
    """(id, certificate) of a data node that joined."""
    made = await add_node(service, name, **options)
    answer = await join(service, made["token"], request_of(make_key()))
    assert answer.status_code == 201, answer.text
    return made["id"], x509.load_pem_x509_certificate(answer.json()["certificate"].encode())


@dataclass
class Node:
    """The node's end of a connection of the control door."""

    gateway: NodeGateway
    node_id: str
    up: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    down: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    records: dict[str, ServingRecord] = field(default_factory=dict)
    tenants: list[str] | None = None

    async def send(self, text: str) -> None:
        self.down.put_nowait(text)

    async def receive(self) -> str | None:
        return await self.up.get()

    def say(self, message: FromNode) -> None:
        self.up.put_nowait(control.encode(message))

    async def read(self) -> FromManager:
        async with asyncio.timeout(20):
            message = decode_from_manager(await self.down.get())
        assert message is not None
        if isinstance(message, Records):
            for one in message.records:
                self.records[one.tenant] = decode_record(one.record)
            self.tenants = message.tenants if message.tenants is not None else self.tenants
        return message

    async def read_until_told(self, tenant: str, version_above: int = 0) -> ServingRecord:
        while tenant not in self.records or self.records[tenant].version <= version_above:
            await self.read()
        return self.records[tenant]


@asynccontextmanager
async def connected(
    service: Service,
    node_id: str,
    held: dict[str, int] | None = None,
    heard: list[Any] | None = None,
) -> AsyncIterator[Node]:
    """A data node at the control door; `heard` gets its facts."""
    told = [] if heard is None else heard
    tools = service.tools
    node_tools = NodeTools(tools.database, tools.sealer, tools.clock, told.extend)
    node = Node(NodeGateway(node_tools), node_id)
    serving = asyncio.create_task(node.gateway.serve(parse(Kind.DATA_NODE, node_id), node))
    node.say(NodeHello("1.0", 1, held or {}))
    assert isinstance(await node.read(), NodeWelcome)
    try:
        yield node
    finally:
        node.up.put_nowait(None)
        with contextlib.suppress(NodeRefused):
            async with asyncio.timeout(20):
                await serving


async def tenant_id(tenant: Caller) -> str:
    """The tenant's own id."""
    found: str = (await tenant.get("/v1/tenant")).json()["id"]
    return found


async def test_a_node_joins_once_by_its_token(service: Service) -> None:
    made = await add_node(service, doors=["a:7440", "b:7440"])
    assert (made["state"], made["doors"]) == ("joining", ["a:7440", "b:7440"])
    token, request = made["token"], request_of(make_key())
    assert token.startswith("hfn_")
    assert token.endswith(service.tools.root.fingerprint)
    answer = await join(service, token, request)
    assert answer.status_code == 201
    assert answer.json()["uri"] == datanode_san(made["id"])
    assert (await join(service, token, request)).status_code == 401
    shown = await service.provider.get(f"/v1/provider/data-nodes/{made['id']}")
    assert shown.json()["state"] == "active"
    assert token.split("_")[2] not in shown.text


async def test_only_its_own_token_opens_the_door_to_joining(service: Service) -> None:
    made, tenant = await add_node(service), await service.make_tenant()
    request = request_of(make_key())
    secret = made["token"].split("_")[2]
    flipped = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    bad = [
        tenant.token, service.provider.token, made["token"].replace("hfn_", "hfp_", 1), "hfn_x",
        made["token"].replace(secret, flipped), made["token"].rpartition("_")[0],
    ]  # fmt: skip
    for token in bad:
        assert (await join(service, str(token), request)).status_code == 401
    provider_key = "_".join(["hfp", *made["token"].split("_")[1:3]])
    assert (await service.caller(provider_key).get("/v1/provider/tenants")).status_code == 401
    assert (await join(service, made["token"], request)).status_code == 201


async def test_a_new_invitation_replaces_the_old_one(service: Service) -> None:
    made = await add_node(service)
    path = f"/v1/provider/data-nodes/{made['id']}"
    again = await service.provider.post(f"{path}:invite")
    assert (await join(service, made["token"], request_of(make_key()))).status_code == 401
    assert (await join(service, again.json()["token"], request_of(make_key()))).status_code == 201
    assert (await service.provider.post(f"{path}:revoke")).status_code == 200
    refused = await service.provider.post(f"{path}:invite")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")


async def test_the_last_node_of_a_tenant_is_not_drained(service: Service) -> None:
    await service.make_tenant()
    first, _ = await joined_node(service, "first")
    path = f"/v1/provider/data-nodes/{first}"
    refused = await service.provider.post(f"{path}:drain")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_data_node")
    await joined_node(service, "second")
    for expected in ("draining", "draining"):
        answer = await service.provider.post(f"{path}:drain")
        assert (answer.status_code, answer.json()["state"]) == (200, expected)
    assert (await service.provider.post(f"{path}:undrain")).json()["state"] == "active"


@pytest.mark.invariant("I9")
async def test_who_is_no_active_node_with_its_newest_key_is_not_admitted(service: Service) -> None:
    node_id, leaf = await joined_node(service)
    gateway = NodeGateway(
        NodeTools(service.tools.database, service.tools.sealer, service.tools.clock)
    )
    uri = datanode_san(node_id)
    assert await gateway.admit(leaf, uri) == parse(Kind.DATA_NODE, node_id)
    other_id, other = await joined_node(service, "other")
    tenant = await service.make_tenant()
    host_id, _ = await join_host(tenant, "h")
    host_uri = f"spiffe://holdfast/tenant/{await tenant_id(tenant)}/agent/{host_id}"
    for certificate, claimed in [
        (other, uri), (leaf, datanode_san(other_id)), (leaf, host_uri), (leaf, "spiffe://x"),
        (leaf, datanode_san("node_01hq3v5k8m9n2p4r6s7t8w9x0z")),
        (service.tools.root.certificate, uri),
    ]:  # fmt: skip
        with pytest.raises(NodeRefused):
            await gateway.admit(certificate, claimed)
    await service.provider.post(f"/v1/provider/data-nodes/{node_id}:revoke")
    with pytest.raises(NodeRefused):
        await gateway.admit(leaf, uri)


async def test_a_node_is_told_of_each_tenant_and_of_each_change(service: Service) -> None:
    tenant = await service.make_tenant()
    own = await tenant_id(tenant)
    node_id, _ = await joined_node(service)
    async with connected(service, node_id) as node:
        # Nobody has named a store yet: there is nothing to be told, but whom it will serve.
        assert await node.read() == Records([], [own])
        await service.provider.post("/v1/provider/journal-stores", FOLDER)
        record = await node.read_until_told(own)
        assert (record.store.url, record.store.wall) == ("file:///journals", "folder")
        assert (record.hosts, record.denied) == ([], [])
        host_id, _ = await join_host(tenant, "h")
        record = await node.read_until_told(own, record.version)
        assert [right.host for right in record.hosts] == [host_id]
        await tenant.post(f"/v1/hosts/{host_id}:revoke")
        record = await node.read_until_told(own, record.version)
        assert (record.hosts, record.denied) == ([], [host_id])
        later = await tenant_id(await service.make_tenant())
        await node.read_until_told(later)
        assert node.tenants == sorted([own, later])


async def test_a_tenant_s_rate_reaches_its_record(service: Service) -> None:
    wanted = {"name": "paced", "plan": {"stream_bytes_per_second_max": 1 << 20}}
    paced = (await service.provider.post("/v1/provider/tenants", wanted)).json()["id"]
    free = await tenant_id(await service.make_tenant())
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    node_id, _ = await joined_node(service)
    async with connected(service, node_id) as node:
        assert (await node.read_until_told(paced)).quotas.bytes_per_second == 1 << 20
        assert (await node.read_until_told(free)).quotas.bytes_per_second is None


async def test_a_node_that_holds_the_newest_is_told_nothing_again(service: Service) -> None:
    tenant = await service.make_tenant()
    own = await tenant_id(tenant)
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    node_id, _ = await joined_node(service)
    async with connected(service, node_id) as node:
        record = await node.read_until_told(own)
    async with connected(service, node_id, {own: record.version}) as node:
        assert await node.read() == Records([], [own])
    # A database that was set back would otherwise never be believed again.
    async with connected(service, node_id, {own: record.version + 50}) as node:
        assert (await node.read_until_told(own)).version == record.version + 51


@pytest.mark.invariant("I9")
async def test_a_tenant_s_own_credential_goes_to_its_record_alone(service: Service) -> None:
    own, other = [await tenant_id(await service.make_tenant()) for _ in range(2)]
    wanted = {**FOLDER, "url": "s3://journals?region=eu", "wall": "static"}
    made = await service.provider.post("/v1/provider/journal-stores", wanted)
    path = f"/v1/provider/journal-stores/{made.json()['id']}/credentials"
    for tenant, secret in ((own, "c4n4ry-own"), (other, "c4n4ry-other")):
        given = {"access_key_id": "a", "secret_access_key": secret}
        answer = await service.provider.call("PUT", f"{path}/{tenant}", json=given)
        assert answer.status_code == 200
        assert secret not in answer.text
    node_id, _ = await joined_node(service)
    async with connected(service, node_id) as node:
        record = await node.read_until_told(own)
        await node.read_until_told(other)
    assert record.store.secret_access_key == "c4n4ry-own"
    assert "c4n4ry-other" not in json.dumps(repr(record))
    assert node.records[other].store.secret_access_key == "c4n4ry-other"
    nobody = await service.provider.call("PUT", f"{path}/ten_x", json=given)
    assert nobody.status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"url": "file:///x", "wall": "static"},
        {"url": "s3://x", "wall": "folder"},
        {"url": "s3://x", "wall": "shared"},
        {"url": "s3://x", "wall": "shared", "access_key_id": "a"},
        {"url": "s3://x", "wall": "static", "access_key_id": "a", "secret_access_key": "b"},
        {"url": "ftp://x", "wall": "static"},
    ],
)
async def test_a_store_that_makes_no_sense_is_refused(
    service: Service, change: dict[str, str]
) -> None:
    answer = await service.provider.post("/v1/provider/journal-stores", {**FOLDER, **change})
    assert (answer.status_code, answer.json()["code"]) == (422, "settings_refused")


async def test_a_node_outside_a_tenant_s_territories_is_not_told_of_it(service: Service) -> None:
    wanted = {"name": "picky", "plan": {"territories": ["DE"]}}
    picky = (await service.provider.post("/v1/provider/tenants", wanted)).json()["id"]
    other = await tenant_id(await service.make_tenant())
    for name, territory in (("default", "CH"), ("german", "DE")):
        store = {**FOLDER, "name": name, "territory": territory}
        await service.provider.post("/v1/provider/journal-stores", store)
    swiss, _ = await joined_node(service, "swiss", territory="CH")
    german, _ = await joined_node(service, "german", territory="DE-BY")
    async with connected(service, swiss) as node:
        await node.read_until_told(other)
        assert (node.tenants, set(node.records)) == ([other], {other})
    async with connected(service, german) as node:
        await node.read_until_told(picky)
        await node.read_until_told(other)
        assert node.tenants == sorted([picky, other])


async def test_a_draining_node_serves_nobody_and_a_revoked_one_is_put_out(service: Service) -> None:
    tenant = await service.make_tenant()
    own = await tenant_id(tenant)
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    node_id, _ = await joined_node(service)
    await joined_node(service, "other")
    async with connected(service, node_id) as node:
        await node.read_until_told(own)
        await service.provider.post(f"/v1/provider/data-nodes/{node_id}:drain")
        while node.tenants:
            await node.read()
    serving = NodeGateway(
        NodeTools(service.tools.database, service.tools.sealer, service.tools.clock)
    ).serve(parse(Kind.DATA_NODE, node_id), node)
    node.up = asyncio.Queue()
    node.say(NodeHello("1.0", 1, {}))
    await service.provider.post(f"/v1/provider/data-nodes/{node_id}:revoke")
    with pytest.raises(NodeRefused):
        async with asyncio.timeout(20):
            await serving


async def _ask(node: Node, key: Key, **about: Any) -> NodeCertificate:
    node.say(CertificateRequest(7, request_of(key), **about))
    while not isinstance(message := await node.read(), NodeCertificate):
        pass
    assert message.request == 7
    return message


@pytest.mark.invariant("I9")
async def test_a_node_gets_certificates_for_the_tenants_that_it_serves(service: Service) -> None:
    own = await tenant_id(await service.make_tenant())
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    node_id, _ = await joined_node(service)
    async with connected(service, node_id) as node:
        await node.read_until_told(own)
        key = make_key()
        signed = await _ask(node, key, tenant=own, service="ingest")
        assert signed.certificate is not None
        leaf, authority = x509.load_pem_x509_certificates(signed.certificate.encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [server_name(own, "ingest")]
        assert leaf.public_key() == key.public_key()
        leaf.verify_directly_issued_by(authority)
        authority.verify_directly_issued_by(service.tools.root.certificate)
        stranger = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
        for about in ({"tenant": stranger, "service": "ingest"}, {"tenant": own}):
            refused = await _ask(node, key, **about)
            assert refused.certificate is None
            assert refused.error is not None
            assert refused.error.code == "not_served"


async def test_a_node_renews_its_own_certificate(service: Service) -> None:
    node_id, old = await joined_node(service)
    uri = datanode_san(node_id)
    async with connected(service, node_id) as node:
        renewed = []
        for _ in range(2):
            answer = await _ask(node, make_key())
            assert answer.certificate is not None
            renewed.append(x509.load_pem_x509_certificates(answer.certificate.encode())[0])
        # The answer to a renewal may be lost: the key before the newest still comes in.
        for leaf in renewed:
            assert await node.gateway.admit(leaf, uri) == parse(Kind.DATA_NODE, node_id)
        with pytest.raises(NodeRefused):
            await node.gateway.admit(old, uri)


async def test_facts_are_heard_of_the_tenants_that_it_serves(service: Service) -> None:
    own = await tenant_id(await service.make_tenant())
    await service.provider.post("/v1/provider/journal-stores", FOLDER)
    node_id, _ = await joined_node(service)
    heard: list[Any] = []
    stream = StreamFacts(own, "vpg_a", "host_a", True, "0a" * 16, 1, 3, 2, 5, 6, "recording")
    foreign = StreamFacts("ten_x", "v", "h", True, None, 1, 3, 2, 5, 6, "recording")
    async with connected(service, node_id, heard=heard) as node:
        await node.read_until_told(own)
        node.say(NodeFacts(1, [stream, foreign]))
        await _ask(node, make_key())
    assert heard == [stream]
    seen = await service.provider.get(f"/v1/provider/data-nodes/{node_id}")
    assert seen.json()["seen_at"] is not None


async def test_hosts_are_told_the_doors_of_active_nodes_that_their_tenant_permits(
    service: Service,
) -> None:
    own = parse(Kind.TENANT, await tenant_id(await service.make_tenant()))
    wanted = {"name": "picky", "plan": {"territories": ["DE"]}}
    made = (await service.provider.post("/v1/provider/tenants", wanted)).json()["id"]
    picky = parse(Kind.TENANT, made)
    nodes = {}
    for name, territory in (("ch", "CH"), ("de", "DE"), ("zh", "CH-ZH")):
        nodes[name], _ = await joined_node(service, name, territory=territory)
    await add_node(service, "joining")

    async def doors(tenant: UUID) -> list[str]:
        async with service.tools.database.tenant(tenant) as session:
            return await doors_of_tenant(session)

    assert sorted(await doors(own)) == ["ch:7440", "de:7440", "zh:7440"]
    assert await doors(picky) == ["de:7440"]
    await service.provider.post(f"/v1/provider/data-nodes/{nodes['ch']}:drain")
    assert sorted(await doors(own)) == ["de:7440", "zh:7440"]


def test_tenants_begin_at_different_nodes_and_each_at_the_same_one() -> None:
    nodes = [NodePlace(UUID(int=n), "CH", [f"{n}:1", f"{n}:2"]) for n in range(3)]
    firsts = [choose_doors(UUID(int=t), None, nodes)[0] for t in range(6)]
    assert firsts == ["0:1", "1:1", "2:1"] * 2
    assert choose_doors(UUID(int=4), None, nodes[::-1]) == [
        "1:1",
        "1:2",
        "2:1",
        "2:2",
        "0:1",
        "0:2",
    ]
    assert choose_doors(UUID(int=4), ["DE"], nodes) == []


@pytest.mark.parametrize(
    ("permitted", "territory", "expected"),
    [
        (None, "CH", True),
        (["CH"], "CH", True),
        (["CH"], "CH-ZH", True),
        (["CH-ZH"], "CH", False),
        (["CH-ZH"], "CH-BE", False),
        ([], "CH", False),
    ],
)
def test_a_country_covers_its_regions(
    permitted: list[str] | None, territory: str, expected: bool
) -> None:
    assert may_hold(permitted, territory) is expected
