"""Who may connect: everybody else is refused before one application byte is processed."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from host_agent.wire.message import pack
from tests.ingest.conftest import Connect, MakeSource
from tests.servers.agent import Agent, Closed, Source, client_context, make_hello
from tests.servers.ingest_process import IngestProcess, IngestSetup, Pki, running_ingest


def _speak(address: tuple[str, int], context: ssl.SSLContext, data: bytes) -> bytes:
    """Connect, say something, and return everything that comes back until the end."""
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(address, timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(data)
        while piece := tls.recv(65536):
            answer += piece
    return answer


def _no_certificate(pki: Pki) -> ssl.SSLContext:
    return client_context(pki.ca[0], None)


def _other_authority(pki: Pki) -> ssl.SSLContext:
    other = Pki(pki.ca[0].parent / "other", "Somebody else")
    return client_context(pki.ca[0], other.agent("host1"))


def _other_tenant(pki: Pki) -> ssl.SSLContext:
    return client_context(pki.ca[0], pki.agent("host1", tenant="globex"))


def _no_agent(pki: Pki) -> ssl.SSLContext:
    return client_context(pki.ca[0], pki.client("odd", "spiffe://holdfast/tenant/acme/host/host1"))


def _dirty_name(pki: Pki) -> ssl.SSLContext:
    uri = "spiffe://holdfast/tenant/acme/agent/host1%0Alevel=info"
    return client_context(pki.ca[0], pki.client("dirty", uri))


def _server_certificate(pki: Pki) -> ssl.SSLContext:
    return client_context(pki.ca[0], pki.server)


def _unlisted_host(pki: Pki) -> ssl.SSLContext:
    return client_context(pki.ca[0], pki.agent("host9"))


def _older_tls(pki: Pki) -> ssl.SSLContext:
    context = client_context(pki.ca[0], pki.agent("host1"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _other_protocol(pki: Pki) -> ssl.SSLContext:
    context = client_context(pki.ca[0], pki.agent("host1"))
    context.set_alpn_protocols(["h2"])
    return context


STRANGERS: list[Callable[[Pki], ssl.SSLContext]] = [
    _no_certificate,
    _other_authority,
    _other_tenant,
    _no_agent,
    _dirty_name,
    _server_certificate,
    _unlisted_host,
    _older_tls,
    _other_protocol,
]


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda make: make.__name__.strip("_"))
def test_stranger_is_refused_before_a_byte(
    setup: IngestSetup, source: Source, connect: Connect, stranger: Callable[[Pki], ssl.SSLContext]
) -> None:
    """I9: TLS 1.3 shows a client nothing but the end, so the server is asked what it did."""
    setup.hosts = {"host1": ["shop"]}
    with running_ingest(setup) as ingest:
        hello = pack(make_hello(source))
        assert _speak(ingest.address, stranger(setup.pki), hello) == b""
        status = ingest.status()
        assert status["accepted"] == 0
        assert status["refused_peer"] + status["refused_handshake"] == 1
        assert status["streams"] == []
        assert "session" not in ingest.log
        assert all(line.startswith("time=") for line in ingest.log.splitlines())
        assert connect(ingest, source).hello().epoch == 1  # the door is open to its own


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    ("host", "changes"),
    [
        ("host1", {"group": "ledger"}),
        ("host1", {"host": "host2"}),
        ("host1", {"tenant": "globex"}),
        ("host2", {"group": "shop"}),
        ("host1", {"group": "no-such-group"}),
    ],
    ids=["other group", "other host", "other tenant", "other host's group", "unknown group"],
)
def test_certificate_does_not_open_other_streams(
    setup: IngestSetup,
    make_source: MakeSource,
    context: Callable[[str], ssl.SSLContext],
    host: str,
    changes: dict[str, str],
) -> None:
    """I9: every refusal reads the same, whether or not what was asked for exists."""
    setup.hosts = {"host1": ["shop"], "host2": ["ledger"], "host3": ["*"]}
    with running_ingest(setup) as ingest:
        named = {"tenant": "acme", "group": "shop", "host": host, **changes}
        source = make_source(named["group"], named["host"])
        agent = Agent(ingest.address, context(host), source)
        with pytest.raises(Closed) as closed:
            agent.hello(tenant=named["tenant"])
        agent.leave()
        close = closed.value.close
        assert close is not None
        assert close.code == "not_authorised"
        assert close.message == "This certificate does not allow this stream."
        assert ingest.status()["streams"] == []
        assert not (setup.directory / "store" / "acme" / named["group"]).exists()


def test_listed_hosts_and_groups_are_let_in(
    setup: IngestSetup, connect: Connect, make_source: MakeSource
) -> None:
    setup.hosts = {"host1": ["shop"], "host3": ["*"]}
    with running_ingest(setup) as ingest:
        for group, host in [("shop", "host1"), ("anything", "host3")]:
            assert connect(ingest, make_source(group, host)).hello().epoch == 1


def test_no_session_lets_a_client_in_again(
    ingest: IngestProcess, context: Callable[[str], ssl.SSLContext], source: Source
) -> None:
    """What TLS hands out for the next time is worth nothing: a certificate is asked for again."""
    agent = Agent(ingest.address, context("host1"), source)
    agent.hello()
    agent.read_for(0.2)
    assert agent.socket.version() == "TLSv1.3"
    session = agent.socket.session
    agent.leave()
    with (
        socket.create_connection(ingest.address, timeout=10) as raw,
        context("host1").wrap_socket(raw, server_hostname="localhost", session=session) as again,
    ):
        again.sendall(pack(make_hello(source)))
        assert again.recv(1)
        assert not again.session_reused


@pytest.mark.invariant("I12")
def test_connections_that_never_finish_their_handshake_are_bounded(
    setup: IngestSetup, connect: Connect, source: Source
) -> None:
    """I12: slow strangers take a bounded number of places, and lose them after 5 s."""
    setup.settings = {"limits": {"handshakes_max": 8}}
    with running_ingest(setup) as ingest, contextlib.ExitStack() as stack:
        for _ in range(300):
            slow = stack.enter_context(socket.create_connection(ingest.address, timeout=5))
            with contextlib.suppress(OSError):
                slow.sendall(b"\x16\x03\x01")
        time.sleep(0.3)
        status = ingest.status()
        assert status["connections"] == 8
        assert status["refused_full"] == 292
        time.sleep(5.2)
        assert ingest.status()["refused_handshake"] == 8
        assert connect(ingest, source).hello().epoch == 1


@pytest.mark.invariant("I12")
def test_connections_are_bounded(
    setup: IngestSetup, context: Callable[[str], ssl.SSLContext], source: Source, connect: Connect
) -> None:
    """I12: agents that are let in and say nothing lose their place after 5 s."""
    setup.settings = {"limits": {"connections_max": 5}}
    with running_ingest(setup) as ingest, contextlib.ExitStack() as stack:
        silent = [Agent(ingest.address, context("host1"), source) for _ in range(5)]
        for agent in silent:
            stack.callback(agent.leave)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Agent(ingest.address, context("host1"), source)
        assert ingest.status()["refused_full"] == 1
        for agent in silent:
            close = agent.wait_close()
            assert close is not None
            assert close.code == "idle"
            agent.leave()
        time.sleep(0.2)
        assert connect(ingest, source).hello().epoch == 1


def test_foreign_protocols_are_survived(
    ingest: IngestProcess, connect: Connect, source: Source
) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(5000)):
        with socket.create_connection(ingest.address, timeout=5) as raw:
            raw.sendall(data)
            with contextlib.suppress(ConnectionError):
                while raw.recv(1000):
                    pass
    assert connect(ingest, source).hello().epoch == 1


def test_log_lines_hold_one_event_each(
    ingest: IngestProcess, connect: Connect, source: Source
) -> None:
    """What an agent says of itself cannot make a second line or another key."""
    agent = connect(ingest, source)
    with pytest.raises(Closed):
        agent.hello(group='x"\nlevel=info event=forged')
    agent.leave()
    deadline = time.monotonic() + 10
    while "event=session_ended" not in ingest.log and time.monotonic() < deadline:
        time.sleep(0.02)
    lines = ingest.log.splitlines()
    assert all(line.startswith("time=") for line in lines)
    assert not any(" event=forged" in line and '"' not in line for line in lines)
    assert sum("event=session_ended" in line for line in lines) == 1


def test_status_socket_is_its_owners_alone(ingest: IngestProcess, setup: IngestSetup) -> None:
    path: Path = setup.status_socket
    assert path.stat().st_mode & 0o777 == 0o600
    assert ingest.status()["streams"] == []
