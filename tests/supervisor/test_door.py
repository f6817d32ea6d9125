"""The data door: who is refused, before one application byte, and what is not refused."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_agent.wire.keys import TenantKey
from host_agent.wire.message import pack
from host_agent.wire.names import INGEST, RESTORE, Identity, agent_san, server_name
from tests.servers.agent import Agent, Source, make_hello
from tests.servers.datanode import DataNode, Deployment, Tenant, running_node


@pytest.fixture(scope="module")
def tenants(deployment: Deployment) -> tuple[Tenant, Tenant]:
    return deployment.tenant(), deployment.tenant()


@pytest.fixture(scope="module")
def node(deployment: Deployment, tenants: tuple[Tenant, Tenant]) -> Iterator[DataNode]:
    with running_node(deployment, *tenants) as running:
        yield running


def source_of(tenant: Tenant, group: str, host: str = "host1") -> Source:
    """A stream of the tenant."""
    key = TenantKey.make(tenant.id)
    return Source(Identity(tenant.id, group, host), key, random.Random(3))


def speak(node: DataNode, context: ssl.SSLContext, name: str | None, source: Source) -> bytes:
    """Connect as somebody, say HELLO, and return everything that comes back until the end."""
    answer = b""
    context.check_hostname = False
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(node.address, timeout=30) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        tls.sendall(pack(make_hello(source)))
        while piece := tls.recv(65536):
            answer += piece
    return answer


def door(node: DataNode, tenant: Tenant) -> dict[str, Any]:
    """What the tenant's ingest counted; it reports every 2 s."""
    for service in node.status()["services"]:
        if service["tenant"] == tenant.id:
            found: dict[str, Any] = service["status"]
            return found
    return {}


def counted(node: DataNode, tenant: Tenant) -> int:
    """How many it refused."""
    status = door(node, tenant)
    return int(status.get("refused_peer", 0)) + int(status.get("refused_handshake", 0))


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "who", ["no certificate", "foreign leaf", "own leaf, foreign name", "unlisted"]
)
def test_strangers_are_refused_before_a_byte(
    deployment: Deployment,
    node: DataNode,
    tenants: tuple[Tenant, Tenant],
    tmp_path: Path,
    who: str,
) -> None:
    """The negative control: the same words by the tenant's own host are answered."""
    own, other = tenants
    certificate = {
        "no certificate": None,
        "foreign leaf": other.agent(tmp_path, "host1"),
        "own leaf, foreign name": other.agent(tmp_path, "x", uri=agent_san(own.id, "host1")),
        "unlisted": own.agent(tmp_path, "host9"),
    }[who]
    name, source = server_name(own.id, INGEST), source_of(own, "refused")
    accepted = door(node, own).get("accepted", 0) + 1
    known = deployment.client(own.agent(tmp_path, "host1"))
    assert speak_briefly(node, known, name, source) != b""
    node.wait_for(lambda: door(node, own).get("accepted") == accepted, "it was not accepted")
    was_refused = counted(node, own)
    assert speak(node, deployment.client(certificate), name, source) == b""
    node.wait_for(lambda: counted(node, own) == was_refused + 1, "it was not refused")
    assert door(node, own)["accepted"] == accepted


def speak_briefly(node: DataNode, context: ssl.SSLContext, name: str, source: Source) -> bytes:
    """As `speak`, until the first bytes come back."""
    with (
        socket.create_connection(node.address, timeout=60) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        tls.sendall(pack(make_hello(source)))
        return tls.recv(16)


@pytest.mark.invariant("I9")
def test_a_ticket_opens_no_door(
    deployment: Deployment, node: DataNode, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    """No session is ever continued: neither the tenant's own nor under another's name."""
    own, other = tenants
    context = deployment.client(own.agent(tmp_path, "host1"))
    session = None
    for tenant in (own, own, other):
        name = server_name(tenant.id, INGEST)
        with (
            socket.create_connection(node.address, timeout=60) as raw,
            contextlib.suppress(ssl.SSLError, ConnectionError),
            context.wrap_socket(raw, server_hostname=name, session=session) as tls,
        ):
            assert not tls.session_reused
            tls.sendall(pack(make_hello(source_of(own, "ticket"))))
            answer = tls.recv(16)
            assert bool(answer) == (tenant is own)
            session = tls.session


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "name",
    [
        None,
        "localhost",
        server_name("ten_01hq3v5k8m9n2p4r6s7t8w9x0z", INGEST),
        server_name("ten_01hq3v5k8m9n2p4r6s7t8w9x0z", RESTORE),
    ],
)
def test_unknown_names_are_closed_without_a_byte(
    deployment: Deployment,
    node: DataNode,
    tenants: tuple[Tenant, Tenant],
    tmp_path: Path,
    name: str | None,
) -> None:
    context = deployment.client(tenants[0].agent(tmp_path, "host1"))
    context.check_hostname = False
    with socket.create_connection(node.address, timeout=30) as raw:
        client = context.wrap_bio(ssl.MemoryBIO(), sent := ssl.MemoryBIO(), False, name)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        raw.sendall(sent.read())
        with contextlib.suppress(ConnectionError):
            assert raw.recv(100) == b""


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x01"])
def test_who_does_not_speak_tls_is_closed_without_a_byte(node: DataNode, data: bytes) -> None:
    """Also who says nothing for 5 s."""
    with socket.create_connection(node.address, timeout=60) as raw:
        raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            assert raw.recv(100) == b""


def test_a_flood_of_silent_connections_leaves_the_door_open_to_others(
    deployment: Deployment, node: DataNode, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    """One address has 64 of them at most; what is above is closed at once."""
    context = deployment.client(tenants[0].agent(tmp_path, "host1"))
    name = server_name(tenants[0].id, INGEST)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            raw = stack.enter_context(
                socket.create_connection(node.address, timeout=30, source_address=("127.0.0.7", 0))
            )
        assert raw.recv(1) == b""
        source = source_of(tenants[0], "flood")
        assert speak_briefly(node, context, name, source) != b""


def test_a_hello_that_comes_byte_by_byte_reaches_its_tenant(
    deployment: Deployment, node: DataNode, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    context = deployment.client(tenants[0].agent(tmp_path, "host1"))
    name = server_name(tenants[0].id, INGEST)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, False, name)
    with socket.create_connection(node.address, timeout=30) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        for byte in outgoing.read():
            raw.sendall(bytes([byte]))
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                received = raw.recv(65536)
                assert received
                incoming.write(received)
    assert client.version() == "TLSv1.3"


def test_two_tenants_write_at_once_into_their_own_journals(
    deployment: Deployment, node: DataNode, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    for tenant in tenants:
        source = source_of(tenant, "both")
        source.write(5)
        context = deployment.client(tenant.agent(tmp_path, "host1"))
        agent = Agent(node.address, context, source, server_name(tenant.id, INGEST))
        agent.hello()
        agent.send_frame()
        agent.wait_stored(seconds=60)
        agent.leave()
        assert (Path(tenant.store.removeprefix("file://")) / tenant.id / "both").is_dir()
    numbers = {node.pid_of(INGEST, tenant.id) for tenant in tenants}
    assert len(numbers) == 2
