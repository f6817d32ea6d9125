"""A machine joins a running service with the agent's own command, and comes in at ingest's door."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from host_agent.wire.message import ALPN
from infra.demo.processes import free_port
from infra.dev_certificates import Authority
from tests.app.test_up import ask, running, state_folder
from workers.ingest.config import TlsConfig
from workers.ingest.errors import SessionEnded
from workers.ingest.tls import peer_of, server_context
from workers.ingest.transport import TlsTransport

pytestmark = pytest.mark.xdist_group("enrol")

AGENT = str(Path(sys.executable).with_name("holdfast-agent"))


def agent(*words: str, token: str = "") -> tuple[int, dict[str, Any]]:
    """Run the agent's command with --json; its exit code and what it said."""
    done = subprocess.run(
        [AGENT, *words, "--json"],
        input=token,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Any]]:
    with state_folder() as folder, running(folder, free_port()) as (_, said):
        provider = Path(said["provider_key_file"]).read_text().strip()
        tenant = ask(said, "/v1/provider/tenants", provider, {"name": "Acme"})
        yield {**said, "provider": provider, "tenant": tenant["token"], "tenant_id": tenant["id"]}


def join_token(started: dict[str, Any], name: str) -> str:
    made = ask(started, "/v1/join-tokens", started["tenant"], {"name": name})
    return str(made["token"])


def test_a_host_joins_renews_and_is_let_in(started: dict[str, Any], tmp_path: Path) -> None:
    identity, token = tmp_path / "identity", join_token(started, "one")
    words = ("--api", started["url"], "--token-file", "-", "--directory", str(identity))
    code, joined = agent("enrol", *words, token=token)
    assert code == 0
    assert joined["tenant_id"] == started["tenant_id"]
    assert stat.S_IMODE((identity / "agent.pem").stat().st_mode) == 0o600
    assert knock(started, identity, tmp_path) == (joined["tenant_id"], joined["host_id"])
    before = (identity / "agent.pem").read_bytes()
    code, renewed = agent("renew", "--directory", str(identity))
    assert (code, renewed["host_id"]) == (0, joined["host_id"])
    assert (identity / "agent.pem").read_bytes() != before
    assert knock(started, identity, tmp_path) == (joined["tenant_id"], joined["host_id"])
    assert agent("enrol", *words, token=token)[1]["error"] == "already_enrolled"
    ask(started, f"/v1/hosts/{joined['host_id']}:revoke", started["tenant"], {})
    code, refused = agent("renew", "--directory", str(identity))
    assert (code, refused["error"]) == (1, "enrolment_failed")


def test_nothing_is_sent_to_a_service_that_the_token_does_not_pin(
    started: dict[str, Any], tmp_path: Path
) -> None:
    token = join_token(started, "two")
    wrong = token[:-64] + "0" * 64
    words = ("--api", started["url"], "--token-file", "-", "--directory", str(tmp_path / "no"))
    code, refused = agent("enrol", *words, token=wrong)
    assert (code, refused["error"]) == (1, "service_not_believed")
    assert not (tmp_path / "no").exists()
    # The service never saw the token, so it still works.
    assert agent("enrol", *words, token=token)[0] == 0


@pytest.mark.parametrize("shows_true_root", [True, False])
def test_a_false_service_gets_no_certificate_request(
    started: dict[str, Any], tmp_path: Path, shows_true_root: bool
) -> None:
    root = Path(started["root_certificate"]).read_text()
    authority = Authority("somebody else", datetime.now(UTC))
    false = authority.server(("localhost",), ("127.0.0.1",))
    (tmp_path / "false.pem").write_bytes(false.certificate + false.key)
    shown = root if shows_true_root else authority.issued.certificate.decode()
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()
    thread = threading.Thread(
        target=_lie, args=(listener, tmp_path / "false.pem", shown, (heard, over))
    )
    thread.start()
    api = f"https://localhost:{listener.getsockname()[1]}"
    words = ("--api", api, "--token-file", "-", "--directory", str(tmp_path / "no"))
    code, refused = agent("enrol", *words, token=join_token(started, "three"))
    over.set()
    thread.join(30)
    listener.close()
    assert (code, refused["error"]) == (1, "service_not_believed")
    assert not any(b"REQUEST" in data or b"hfj_" in data for data in heard)
    assert any(b"/v1/root-certificate" in data for data in heard)


def _lie(
    listener: socket.socket, pem: Path, root: str, until: tuple[list[bytes], threading.Event]
) -> None:
    """A service that shows any root that is asked of it, and writes down what it hears."""
    heard, over = until
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    body = json.dumps({"certificate": root, "sha256": "x"}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
    while not over.is_set():
        try:
            connected, _ = listener.accept()
        except TimeoutError:
            continue
        connected.settimeout(5)
        try:
            with context.wrap_socket(connected, server_side=True) as door:
                heard.append(door.recv(65_536))
                door.sendall(head + body)
        except OSError:
            connected.close()


@pytest.mark.parametrize(
    ("api", "token", "code"),
    [
        ("http://127.0.0.1:1", "hfj_" + "0" * 26 + "_" + "0" * 26 + "_" + "0" * 64, "enrolment"),
        ("https://127.0.0.1:1", "nonsense", "enrolment"),
    ],
)
def test_bad_words_are_named(tmp_path: Path, api: str, token: str, code: str) -> None:
    words = ("--api", api, "--token-file", "-", "--directory", str(tmp_path))
    assert agent("enrol", *words, token=token)[1]["error"].startswith(code)
    assert agent("renew", "--directory", str(tmp_path))[1]["error"].startswith(code)


def knock(started: dict[str, Any], identity: Path, folder: Path) -> tuple[str, str] | None:
    """Whom ingest's own door sees, with the tenant's intermediate as all that it trusts."""
    _, intermediate = x509.load_pem_x509_certificates((identity / "agent.pem").read_bytes())[:2]
    (folder / "ca.pem").write_bytes(intermediate.public_bytes(serialization.Encoding.PEM))
    server = Path(started["root_certificate"]).with_name("server.pem")
    context = server_context(TlsConfig(server, server, folder / "ca.pem"))
    client = ssl.create_default_context(cafile=str(identity / "root.crt"))
    client.load_cert_chain(identity / "agent.pem")
    client.set_alpn_protocols([ALPN])
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_come_in, args=(client, theirs))
    thread.start()
    try:
        return asyncio.run(_let_in(context, ours))
    except (OSError, SSL.Error, SessionEnded):
        return None
    finally:
        thread.join(10)


async def _let_in(context: SSL.Context, raw: socket.socket) -> tuple[str, str]:
    transport = TlsTransport(context, raw)
    try:
        async with asyncio.timeout(10):
            await transport.handshake()
        peer = peer_of(transport.get_extra_info("shown"), "test")
        return peer.tenant, peer.host
    finally:
        transport.abort()


def _come_in(client: ssl.SSLContext, raw: socket.socket) -> None:
    try:
        with client.wrap_socket(raw, server_hostname="localhost") as link:
            link.recv(1)
    except OSError:
        raw.close()
