"""What `make dev-keys` writes is what the two sides accept."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from host_agent.control.config import load_config
from host_agent.wire.keys import GroupKey, TenantKey, unwrap
from host_agent.wire.names import parse_san
from infra.dev_keys import DevSetup, FolderTaken, main, write_dev_setup
from workers.ingest.config import load_config as load_ingest_config


@pytest.fixture
def setup(tmp_path: Path) -> DevSetup:
    setup = DevSetup(tmp_path / "trial")
    write_dev_setup(setup, datetime.now(UTC))
    return setup


def test_tenant_key_opens_the_group_key(setup: DevSetup) -> None:
    tenant_key = TenantKey.parse(setup.path("tenant.key").read_bytes())
    group_key = GroupKey.parse(setup.path("demo.group.key").read_bytes())
    assert unwrap(tenant_key.key, group_key.wrapped, "group", "acme", "demo") == group_key.key


def test_secrets_are_for_their_owner_only(setup: DevSetup) -> None:
    secrets = [path for path in setup.directory.iterdir() if path.suffix == ".key"]
    assert len(secrets) == 5
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_agent_configuration_is_accepted(setup: DevSetup) -> None:
    config = load_config(setup.path("agent.toml"))
    assert (config.tenant, config.host) == ("acme", "host1")
    assert config.ingest.addresses == (("127.0.0.1", setup.port),)
    assert [group.name for group in config.groups] == ["demo"]


def test_ingest_configuration_is_accepted(setup: DevSetup) -> None:
    config = load_ingest_config(setup.path("ingest.toml"))
    assert (config.tenant, config.listen) == ("acme", ("127.0.0.1", setup.port))
    assert config.store == f"file://{setup.path('store')}"


def test_existing_keys_are_never_overwritten(setup: DevSetup) -> None:
    before = setup.path("tenant.key").read_bytes()
    with pytest.raises(FolderTaken):
        write_dev_setup(setup, datetime.now(UTC))
    assert setup.path("tenant.key").read_bytes() == before


def test_command_says_why_it_refuses(setup: DevSetup, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(setup.directory)]) == 1
    assert "already holds" in capsys.readouterr().err


def _server_context(setup: DevSetup) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(setup.path("ca.crt"))
    context.load_cert_chain(setup.path("ingest.crt"), setup.path("ingest.key"))
    return context


def _client_context(trusted: DevSetup, own: DevSetup) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(trusted.path("ca.crt"))
    context.load_cert_chain(own.path("agent.crt"), own.path("agent.key"))
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> list[str]:
    """The URIs that the server saw; raises ssl.SSLError on the side that refused first."""
    near, far = socket.socketpair()
    seen: list[str] = []
    refused: list[ssl.SSLError] = []

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as stream:
                certificate = stream.getpeercert()
                assert certificate is not None
                seen.extend(str(name[1]) for name in certificate["subjectAltName"])
                stream.sendall(b"!")
        except ssl.SSLError as error:
            refused.append(error)
        finally:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with near, client.wrap_socket(near, server_hostname=name) as stream:
            stream.recv(1)
    finally:
        thread.join()
    if refused:
        raise refused[0]
    return seen


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_both_sides_accept_each_other(setup: DevSetup, name: str) -> None:
    uris = _shake_hands(_server_context(setup), _client_context(setup, setup), name)
    assert [parse_san(uri) for uri in uris] == [("acme", "host1")]


def test_another_folders_certificate_is_refused(setup: DevSetup, tmp_path: Path) -> None:
    stranger = DevSetup(tmp_path / "stranger")
    write_dev_setup(stranger, datetime.now(UTC))
    with pytest.raises(ssl.SSLError):
        _shake_hands(_server_context(setup), _client_context(setup, stranger), "localhost")
