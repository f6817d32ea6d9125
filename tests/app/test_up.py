"""`holdfast up`, as a user runs it: an empty folder, a stop, a start, a kill, a start."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import free_port

_SECONDS_MAX = 60.0
HOLDFAST = Path(sys.executable).with_name("holdfast")


@contextmanager
def state_folder() -> Iterator[Path]:
    """A folder that is not there yet."""
    # Short and reachable for the database's unprivileged user, which pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="up-") as made:
        Path(made).chmod(0o755)
        yield Path(made) / "state"


@pytest.fixture
def folder() -> Iterator[Path]:
    with state_folder() as made:
        yield made


def command_of(folder: Path, port: int) -> list[str]:
    """The words that start it; its other doors are anywhere."""
    words = [str(HOLDFAST), "up", "--directory", str(folder), "--port", str(port), "--json"]
    return [*words, "--control-port", str(free_port()), "--data-port", str(free_port())]


@contextmanager
def running(folder: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process and what it said when it answered."""
    process = subprocess.Popen(
        command_of(folder, port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=_SECONDS_MAX)


def ask(started: dict[str, Any], path: str, token: str = "", body: Any = None) -> Any:
    """A request that believes the deployment's root alone."""
    context = ssl.create_default_context(cafile=started["root_certificate"])
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(started["url"] + path, data, headers)
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return json.load(answer)


def servers_in(folder: Path) -> list[int]:
    """Processes of the private PostgreSQL."""
    data = str(folder / "postgres/data").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if data in words:
                found.append(int(entry.name))
    return found


def test_it_starts_stops_and_keeps_what_it_knows(folder: Path) -> None:
    port = free_port()
    with running(folder, port) as (process, started):
        token = Path(started["provider_key_file"]).read_text().strip()
        made = ask(started, "/v1/provider/tenants", token, {"name": "Acme"})
        ask(started, "/v1/sites", made["token"], {"name": "here", "territory": "CH"})
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS_MAX) == 0
    assert servers_in(folder) == []
    with running(folder, port) as (process, again):
        assert again["provider_key_file"] is None
        assert again["root_sha256"] == started["root_sha256"]
        sites = ask(again, "/v1/sites", made["token"])["items"]
        assert [site["name"] for site in sites] == ["here"]
        process.kill()
        process.wait()
    with running(folder, port) as (_, third):
        assert ask(third, "/health")["status"] == "up"
        assert len(ask(third, "/v1/sites", made["token"])["items"]) == 1
    deadline = time.monotonic() + _SECONDS_MAX
    while servers_in(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert servers_in(folder) == []


def test_secrets_are_for_their_owner_alone(folder: Path) -> None:
    with running(folder, free_port()) as (_, started):
        for name in ("secret", "root.key", "server.pem", "provider.key"):
            mode = stat.S_IMODE((folder / name).stat().st_mode)
            assert mode == 0o600, name
        assert stat.S_IMODE((folder / "postgres").stat().st_mode) == 0o700
        token = (folder / "provider.key").read_text().strip()
        assert token not in Path(started["root_certificate"]).read_text()


def refused(folder: Path, port: int) -> dict[str, Any]:
    """The error of a start that must fail."""
    done = subprocess.run(
        command_of(folder, port), capture_output=True, text=True, timeout=_SECONDS_MAX, check=False
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    error: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return error


def test_a_second_one_in_the_folder_or_on_the_port_is_refused_by_name(folder: Path) -> None:
    port = free_port()
    with running(folder, port) as (_, started):
        assert refused(folder, free_port())["error"] == "folder_busy"
        other = folder.with_name("other")
        assert refused(other, port)["error"] == "address_taken"
        assert servers_in(other) == []
        assert ask(started, "/health")["status"] == "up"


def test_a_lost_secret_is_never_made_anew(folder: Path) -> None:
    with running(folder, free_port()):
        pass
    (folder / "secret").rename(folder / "elsewhere")
    assert refused(folder, free_port())["error"] == "folder_damaged"
    (folder / "elsewhere").rename(folder / "secret")
    with running(folder, free_port()) as (_, started):
        assert ask(started, "/health")["status"] == "up"


def test_tls_below_1_3_is_refused(folder: Path) -> None:
    with running(folder, free_port()) as (_, started):
        host, port = "localhost", int(started["url"].rpartition(":")[2])
        context = ssl.create_default_context(cafile=started["root_certificate"])
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        where = ("127.0.0.1", port)
        refusals = (ssl.SSLError, ConnectionError)
        with socket.create_connection(where, timeout=10) as raw, pytest.raises(refusals):
            context.wrap_socket(raw, server_hostname=host)
