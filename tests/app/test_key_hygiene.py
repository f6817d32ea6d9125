"""Keys stay where they belong: the memory of what relays them is searched, byte by byte.

The relay is a process that does what the API and the managers do with keys: it makes groups' keys,
hands out data keys, sends tickets' keys and exports the tenant's. The key service is another one.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import create_engine, text

from app.certificates.authority import (
    Authority,
    make_intermediate,
    make_node_authority,
    make_root,
    pem_of,
    sign_door,
    sign_host,
)
from app.embedded.postgres import Postgres
from app.keys.port import WrappedKey
from host_agent.wire.keyrequest import HostIdentity, ask, to_builtins
from host_agent.wire.keys import TenantKey, unwrap
from host_agent.wire.names import RESTORE, Identity, agent_san, server_name
from infra.demo.processes import free_port
from tests.app.test_commands import Terminal
from tests.app.test_up import running, state_folder

TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
CANARY = "c4n4ry-that-the-relay-holds"
_SECONDS_MAX = 120.0
_RELAY = """
import asyncio, json, sys
from pathlib import Path
from app.keys.client import SocketKeys
from app.keys.port import Recipient, RestoreProcess
from host_agent.wire import keyrequest

async def run(told):
    keys = SocketKeys(Path(told["socket"]))
    while not await keys.is_up():
        await asyncio.sleep(0.05)
    key_id = await keys.make_tenant_key(told["tenant"])
    wrapped = await keys.new_group_key(told["tenant"], "vpg-1", key_id)
    request = keyrequest.parse(told["request"], keyrequest.DataKeyRequest)
    answer = await keys.issue_data_key(request, wrapped, frozenset())
    door = await keys.seal_for_restore(wrapped, "c" * 32, RestoreProcess(told["chain"], "test"))
    sealed = await keys.export_tenant_key(told["tenant"], Recipient(bytes(range(32)), "test"))
    return keys, wrapped, answer, door, sealed

told = json.loads(sys.stdin.readline())
kept = asyncio.run(run(told))
careless = Path(told["careless"]).read_bytes() if told["careless"] else b""
print(json.dumps({"wrapped": kept[1].dump()}), flush=True)
sys.stdin.readline()
"""


def memory_of(pid: int) -> Iterator[bytes]:
    """Everything that the process has mapped and may read."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            (
                places,
                rights,
                *_,
            ) = line.split()
            if "r" not in rights or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, stop = (int(place, 16) for place in places.split("-"))
            try:
                memory.seek(start)
                yield memory.read(stop - start)
            except (OSError, ValueError, OverflowError):
                continue  # a mapping that cannot be read, such as a device's


def forms_of(secret: bytes) -> Sequence[bytes]:
    """How a key could lie in memory."""
    return (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="))


def found_in(pid: int, secrets: dict[str, bytes]) -> set[str]:
    """Which of these the process's memory holds."""
    return {
        name
        for piece in memory_of(pid)
        for name, secret in secrets.items()
        if any(form in piece for form in forms_of(secret))
    }


@contextmanager
def processes(folder: Path, *, careless: bool) -> Iterator[tuple[int, WrappedKey, TenantKey]]:
    """(pid of the relay, the group's wrapped key, the tenant's key as its file has it)."""
    now = datetime.now(UTC)
    root = make_root(now)
    (folder / "root.crt").write_text(root.certificate_pem)
    told = _told(folder, root, now)
    tenant_file = folder / "keys" / "tenants" / f"{TENANT}.key"
    told["careless"] = str(tenant_file) if careless else ""
    environment = {**os.environ, "HOLDFAST_ROOT_CERTIFICATE_FILE": str(folder / "root.crt")}
    words = ["keys", "--directory", str(folder / "keys"), "--socket", str(folder / "s")]
    service = subprocess.Popen([sys.executable, "-m", "workers.cli.main", *words], env=environment)
    relay = subprocess.Popen(
        [sys.executable, "-c", _RELAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert relay.stdin is not None
        assert relay.stdout is not None
        relay.stdin.write(json.dumps(told) + "\n")
        relay.stdin.flush()
        deadline = time.monotonic() + _SECONDS_MAX
        ready = select.select([relay.stdout], [], [], deadline - time.monotonic())[0]
        assert ready, "the relay did not get its keys"
        wrapped = WrappedKey.parse(json.loads(relay.stdout.readline())["wrapped"])
        yield relay.pid, wrapped, TenantKey.parse(tenant_file.read_bytes())
    finally:
        relay.kill()
        relay.communicate()
        service.terminate()
        assert service.wait(_SECONDS_MAX) == 0


def _told(folder: Path, root: Authority, now: datetime) -> dict[str, object]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = make_intermediate(root, TENANT, now)
    leaf = sign_host(issuer, key.public_key(), agent_san(TENANT, "host-1"), now)
    host = HostIdentity(key, pem_of(leaf) + issuer.certificate_pem)
    request = ask(host, Identity(TENANT, "vpg-1", "host-1"), bytes(16)).request
    nodes = make_node_authority(root, now)
    door = sign_door(nodes, key.public_key(), server_name(TENANT, RESTORE), now)
    return {
        "socket": str(folder / "s"),
        "tenant": TENANT,
        "request": to_builtins(request),
        "chain": pem_of(door) + nodes.certificate_pem,
        "canary": CANARY,
    }


def secrets_of(wrapped: WrappedKey, tenant: TenantKey) -> dict[str, bytes]:
    """What must not be there, and what must, so that the search is not blind."""
    group = unwrap(tenant.key, wrapped.wrapped, "group", wrapped.tenant, wrapped.vpg)
    return {
        "tenant key": tenant.key,
        "group key": group,
        "canary": CANARY.encode(),
        "wrapped key": base64.b64decode(wrapped.wrapped),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.invariant("I9")
def test_who_relays_keys_holds_none(folder: Path) -> None:
    with processes(folder, careless=False) as (pid, wrapped, tenant):
        found = found_in(pid, secrets_of(wrapped, tenant))
    assert found == {"canary", "wrapped key"}


def test_control_the_search_finds_a_key(folder: Path) -> None:
    """A relay that reads the tenant's key file only once is found out."""
    with processes(folder, careless=True) as (pid, wrapped, tenant):
        assert "tenant key" in found_in(pid, secrets_of(wrapped, tenant))


def pids_of(folder: Path, name: str) -> list[int]:
    """The processes of the service in this folder that have this name."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            own = (entry / "comm").read_text().strip()
        except OSError:
            continue  # it has just ended
        if own == name and str(folder).encode() in words:
            found.append(int(entry.name))
    return found


def kept_in(folder: Path) -> WrappedKey:
    """The one group's key, as the database has it."""
    engine = create_engine(Postgres(folder / "postgres").url())
    with engine.connect() as connection:
        wrapped = connection.execute(text("SELECT wrapped FROM group_keys")).scalar_one()
    engine.dispose()
    return WrappedKey.parse(wrapped)


@pytest.mark.invariant("I9")
def test_the_api_and_the_managers_hold_no_key(tmp_path: Path) -> None:
    """The processes of `holdfast up`, after they made a group's key and handed out the tenant's."""
    with state_folder() as folder, running(folder, free_port()) as (_, started):
        terminal = Terminal(tmp_path / "home", started)
        terminal.add_profile("provider", Path(started["provider_key_file"]).read_text())
        terminal.add_profile("acme", terminal.ask("tenant", "create", "Acme")["token"])
        terminal.ask("vpg", "create", "shop", "--profile", "acme")
        words = ("--tenant-name", "Acme", "--reason", "a test", "--profile", "acme")
        file = tmp_path / "acme.key"
        terminal.ask("keys", "export-recovery", *words, "--output", str(file))
        secrets = secrets_of(kept_in(folder), TenantKey.parse(file.read_bytes()))
        secrets["canary"] = str(folder).encode()
        names = ("hf-api", "hf-dsm", "hf-worker", "hf-nursery")
        searched = [pid for name in names for pid in pids_of(folder, name)]
        assert len(searched) == len(names)
        for pid in searched:
            found = found_in(pid, secrets)
            assert "canary" in found
            assert not found & {"tenant key", "group key"}
