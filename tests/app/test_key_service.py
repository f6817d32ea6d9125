"""The key service: who gets which key, who is refused, and what is written down about it."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace as changed

from app.certificates.authority import (
    Authority,
    make_intermediate,
    make_node_authority,
    make_root,
    pem_of,
    sign_door,
    sign_host,
    sign_server,
)
from app.keys import chain
from app.keys.client import SocketKeys
from app.keys.local import KeysBusy, LocalKeys
from app.keys.port import (
    JOB_CONTEXT,
    RECOVERY_CONTEXT,
    KeyMissing,
    KeyRefused,
    KeyService,
    KeyServiceAway,
    Recipient,
    RestoreProcess,
    WrappedKey,
)
from app.keys.records import LogDamaged, read_log
from app.keys.server import KeyServer
from host_agent.wire.envelope import open_envelope
from host_agent.wire.errors import HoldfastError, UnsealFailed
from host_agent.wire.keyrequest import Asked, HostIdentity, ask
from host_agent.wire.keys import GroupKey, TenantKey, open_with_tenant
from host_agent.wire.names import INGEST, RESTORE, Identity, agent_san, server_name
from host_agent.wire.ticket import Ticket, open_group_key

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GENERATION = bytes(range(16))
TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
NOBODY: frozenset[str] = frozenset()


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at


@dataclass
class Deployment:
    """A root, a key service, and hosts of tenants."""

    directory: Path
    root: Authority
    clock: SetClock
    keys: LocalKeys

    def host(self, tenant: str, host: str, *, by: Authority | None = None) -> HostIdentity:
        """A host with its certificate, of its tenant's intermediate if of no other."""
        issuer = by or make_intermediate(self.root, tenant, self.clock.at)
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = sign_host(issuer, key.public_key(), agent_san(tenant, host), self.clock.at)
        return HostIdentity(key, pem_of(leaf) + issuer.certificate_pem)

    async def group(self, tenant: str, vpg: str) -> WrappedKey:
        """A new group's wrapped key."""
        key_id = await self.keys.make_tenant_key(tenant)
        return await self.keys.new_group_key(tenant, vpg, key_id)

    def tenant_key(self, tenant: str) -> TenantKey:
        """Read from its file, as nobody but the service should."""
        return TenantKey.parse((self.directory / "tenants" / f"{tenant}.key").read_bytes())


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Deployment]:
    root, clock = make_root(NOW - timedelta(days=30)), SetClock()
    keys = LocalKeys(tmp_path / "keys", root.certificate, clock)
    yield Deployment(tmp_path / "keys", root, clock, keys)
    keys.close()


@asynccontextmanager
async def over_socket(keys: KeyService, path: Path) -> AsyncIterator[SocketKeys]:
    """The same service behind its socket."""
    async with KeyServer(keys, frozenset({os.geteuid()})).serve(path):
        yield SocketKeys(path)


def asked_by(host: HostIdentity, identity: Identity, key_object: bytes | None = None) -> Asked:
    return ask(host, identity, GENERATION, key_object)


A = Identity("acme", "erp", "host-1")


async def test_a_host_gets_its_key_and_the_tenant_opens_the_journal(
    made: Deployment, tmp_path: Path
) -> None:
    wrapped = await made.group(A.tenant, A.group)
    async with over_socket(made.keys, tmp_path / "s") as keys:
        asked = asked_by(made.host(A.tenant, A.host), A)
        data_key, stored = asked.open(await keys.issue_data_key(asked.request, wrapped, NOBODY))
        assert open_with_tenant(stored, made.tenant_key(A.tenant), A, GENERATION) == data_key
        again = asked_by(made.host(A.tenant, A.host), A, stored)
        answer = await keys.issue_data_key(again.request, wrapped, NOBODY)
        assert again.open(answer) == (data_key, stored)


async def test_every_call_works_over_the_socket(made: Deployment, tmp_path: Path) -> None:
    private = X25519PrivateKey.generate()
    to = Recipient(private.public_key().public_bytes_raw(), "a test")
    async with over_socket(made.keys, tmp_path / "s") as keys:
        assert await keys.is_up()
        key_id = await keys.make_tenant_key(A.tenant)
        assert await keys.make_tenant_key(A.tenant) == key_id
        wrapped = await keys.new_group_key(A.tenant, A.group, key_id)
        assert WrappedKey.parse(wrapped.dump()) == wrapped
        sealed = await keys.seal_group_key(wrapped, "ticket-1", to)
        context = (JOB_CONTEXT, A.tenant, A.group, "ticket-1")
        group = GroupKey.parse(open_envelope(private, sealed, *context))
        assert (group.id, group.wrapped) == (wrapped.id, wrapped.wrapped)
        exported = await keys.export_tenant_key(A.tenant, to)
        opened = TenantKey.parse(open_envelope(private, exported, RECOVERY_CONTEXT, A.tenant))
        assert opened == made.tenant_key(A.tenant)
        with pytest.raises(UnsealFailed):
            open_envelope(private, sealed, *context[:-1], "ticket-2")


async def test_keys_survive_a_restart_and_are_private(made: Deployment) -> None:
    wrapped = await made.group(A.tenant, A.group)
    file = made.directory / "tenants" / "acme.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    before = file.read_bytes()
    with pytest.raises(KeysBusy):
        LocalKeys(made.directory, made.root.certificate, made.clock)
    made.keys.close()
    made.keys = LocalKeys(made.directory, made.root.certificate, made.clock)
    assert await made.keys.make_tenant_key(A.tenant) == wrapped.tenant_key_id
    assert file.read_bytes() == before


@pytest.mark.invariant("I9")
async def test_nothing_of_one_tenant_opens_with_anothers_keys(made: Deployment) -> None:
    """C3: at rest, and in every combination at the service itself."""
    b = Identity("bolt", "erp", "host-1")
    wrapped = {name.tenant: await made.group(name.tenant, name.group) for name in (A, b)}
    stored = {}
    for name in (A, b):
        asked = asked_by(made.host(name.tenant, name.host), name)
        answer = await made.keys.issue_data_key(asked.request, wrapped[name.tenant], NOBODY)
        stored[name.tenant] = asked.open(answer)[1]
    for own, foreign in ((A, b), (b, A)):
        key = made.tenant_key(own.tenant)
        with pytest.raises(HoldfastError):
            open_with_tenant(stored[foreign.tenant], key, foreign, GENERATION)
        host = made.host(own.tenant, own.host)
        for request in (
            asked_by(host, own).request,
            asked_by(host, foreign).request,
            asked_by(host, own, stored[foreign.tenant]).request,
        ):
            with pytest.raises(KeyRefused):
                await made.keys.issue_data_key(request, wrapped[foreign.tenant], NOBODY)
        renamed = changed(wrapped[foreign.tenant], tenant=own.tenant)
        moved = changed(renamed, tenant_key_id=wrapped[own.tenant].tenant_key_id)
        for forged in (renamed, moved):
            with pytest.raises((KeyRefused, KeyMissing)):
                await made.keys.issue_data_key(asked_by(host, own).request, forged, NOBODY)


@pytest.mark.invariant("I9")
async def test_who_is_not_the_host_gets_nothing(made: Deployment) -> None:
    wrapped = await made.group(A.tenant, A.group)
    stranger = make_root(NOW)
    of_acme = make_intermediate(made.root, A.tenant, NOW)
    host = made.host(A.tenant, A.host, by=of_acme)
    leaf_of_leaf = _as_authority(host)
    server = sign_server(made.root, ["localhost"], NOW)
    refused = {
        "of another deployment": made.host(
            A.tenant, A.host, by=make_intermediate(stranger, A.tenant, NOW)
        ),
        "of another tenant's intermediate": made.host(
            A.tenant, A.host, by=make_intermediate(made.root, "bolt", NOW)
        ),
        "of the root itself": made.host(A.tenant, A.host, by=made.root),
        "another host": made.host(A.tenant, "host-2", by=of_acme),
        "a host that signs for others": made.host(A.tenant, A.host, by=leaf_of_leaf),
        "another's certificate": HostIdentity(ec.generate_private_key(ec.SECP256R1()), host.chain),
        "a server": HostIdentity(
            _private(server.key_pem), server.certificate_pem + of_acme.certificate_pem
        ),
        "the order turned": HostIdentity(host.key, "".join(reversed(_split(host.chain)))),
    }
    await made.keys.issue_data_key(asked_by(host, A).request, wrapped, NOBODY)
    for what, identity in refused.items():
        with pytest.raises(KeyRefused):
            await made.keys.issue_data_key(asked_by(identity, A).request, wrapped, NOBODY)
            pytest.fail(what)


async def test_control_without_the_check_of_the_chain_a_stranger_gets_a_key(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_check_issued", lambda *_: None)
    wrapped = await made.group(A.tenant, A.group)
    stranger = make_intermediate(make_root(NOW), A.tenant, NOW)
    asked = asked_by(made.host(A.tenant, A.host, by=stranger), A)
    asked.open(await made.keys.issue_data_key(asked.request, wrapped, NOBODY))


@pytest.mark.parametrize(
    ("later", "is_believed"),
    [(timedelta(days=7), True), (timedelta(days=9), False), (timedelta(days=-365), False)],
)
async def test_certificates_have_their_time_and_a_grace(
    made: Deployment, later: timedelta, is_believed: bool
) -> None:
    wrapped, asked = await made.group(A.tenant, A.group), asked_by(made.host(*_names(A)), A)
    made.clock.at += later
    if is_believed:
        await made.keys.issue_data_key(asked.request, wrapped, NOBODY)
    else:
        with pytest.raises(KeyRefused):
            await made.keys.issue_data_key(asked.request, wrapped, NOBODY)


async def test_who_was_revoked_once_stays_out(made: Deployment) -> None:
    wrapped = await made.group(A.tenant, A.group)
    one, two = made.host(A.tenant, A.host), made.host(A.tenant, "host-2")
    await made.keys.issue_data_key(asked_by(one, A).request, wrapped, NOBODY)
    other = Identity(A.tenant, A.group, "host-2")
    denied = frozenset({A.host})
    await made.keys.issue_data_key(asked_by(two, other).request, wrapped, denied)
    made.keys.close()
    made.keys = LocalKeys(made.directory, made.root.certificate, made.clock)
    with pytest.raises(KeyRefused, match="revoked"):
        await made.keys.issue_data_key(asked_by(one, A).request, wrapped, NOBODY)
    same_name = await made.group("bolt", A.group)
    bolts = Identity("bolt", A.group, A.host)
    asked = asked_by(made.host("bolt", A.host), bolts)
    await made.keys.issue_data_key(asked.request, same_name, NOBODY)


async def test_a_lost_tenant_key_is_missed_and_not_made_anew(made: Deployment) -> None:
    wrapped = await made.group(A.tenant, A.group)
    file = made.directory / "tenants" / "acme.key"
    file.rename(made.directory / "kept")
    asked = asked_by(made.host(*_names(A)), A)
    for attempt in (
        made.keys.issue_data_key(asked.request, wrapped, NOBODY),
        made.keys.new_group_key(A.tenant, "crm", wrapped.tenant_key_id),
    ):
        with pytest.raises(KeyMissing, match="not here"):
            await attempt
    assert await made.keys.make_tenant_key(A.tenant) != wrapped.tenant_key_id
    with pytest.raises(KeyMissing, match="not " + wrapped.tenant_key_id):
        await made.keys.issue_data_key(asked.request, wrapped, NOBODY)
    (made.directory / "kept").rename(file)
    asked.open(await made.keys.issue_data_key(asked.request, wrapped, NOBODY))


async def test_each_use_is_written_down_and_no_secret_is(made: Deployment) -> None:
    wrapped = await made.group(A.tenant, A.group)
    asked = asked_by(made.host(*_names(A)), A)
    data_key, _ = asked.open(await made.keys.issue_data_key(asked.request, wrapped, NOBODY))
    with pytest.raises(KeyRefused):
        await made.keys.issue_data_key(changed(asked.request, host="h"), wrapped, NOBODY)
    to = Recipient(bytes(range(32)), "why not")
    await made.keys.seal_group_key(wrapped, "ticket-1", to)
    await made.keys.export_tenant_key(A.tenant, to)
    log = made.directory / "log.jsonl"
    entries = [(one["act"], one["outcome"]) for one in read_log(log)]
    assert entries == [
        ("make_tenant_key", "done"),
        ("new_group_key", "done"),
        ("issue_data_key", "done"),
        ("issue_data_key", "key_refused"),
        ("seal_group_key", "done"),
        ("export_tenant_key", "done"),
    ]
    assert read_log(log)[2]["generation"] == GENERATION.hex()
    assert read_log(log)[5]["reason"] == "why not"
    tenant = made.tenant_key(A.tenant)
    for secret in (data_key, tenant.key):
        for text in (secret.hex().encode(), secret, _base64(secret)):
            assert text not in log.read_bytes()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_a_changed_log_is_seen_and_a_torn_one_goes_on(made: Deployment) -> None:
    await made.group(A.tenant, A.group)
    made.keys.close()
    log = made.directory / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"act": "new_gr')
    made.keys = LocalKeys(made.directory, made.root.certificate, made.clock)
    await made.keys.make_tenant_key(A.tenant)
    assert len(read_log(log)) == 3
    for damaged in (
        log.read_bytes().replace(b"new_group_key", b"old_group_key"),
        b"".join(log.read_bytes().splitlines(keepends=True)[1:]),
        b"x\n" + log.read_bytes(),
    ):
        copy = made.directory / "copy"
        copy.write_bytes(damaged)
        with pytest.raises(LogDamaged):
            read_log(copy)


async def test_without_its_log_no_key_is_opened(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = await made.group(A.tenant, A.group)
    asked = asked_by(made.host(*_names(A)), A)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HoldfastError, match="cannot be written"):
        await made.keys.issue_data_key(asked.request, wrapped, NOBODY)
    monkeypatch.undo()
    await made.keys.issue_data_key(asked.request, wrapped, NOBODY)


async def test_calls_at_once_are_written_down_together_or_none_is(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, log = await made.keys.make_tenant_key(TENANT), made.directory / "log.jsonl"
    flushes, flush, is_full = [], os.fsync, False

    def slow(descriptor: int) -> None:
        flushes.append(descriptor)
        time.sleep(0.05)
        if is_full:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    async def twenty() -> list[WrappedKey | BaseException]:
        calls = [made.keys.new_group_key(TENANT, f"g{number}", key_id) for number in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    monkeypatch.setattr(os, "fsync", slow)
    assert all(isinstance(one, WrappedKey) for one in await twenty())
    assert (len(read_log(log)), len(flushes) < 10) == (21, True)
    is_full = True
    assert all(isinstance(one, HoldfastError) for one in await twenty())
    is_full = False
    await made.keys.new_group_key(TENANT, "last", key_id)
    assert len(read_log(log)) == 22


def restore_process(
    made: Deployment, service: str = server_name(TENANT, RESTORE), by: Authority | None = None
) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """(key, certificate with its authority's) of a process at a data node."""
    authority = by or make_node_authority(made.root, NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = sign_door(authority, key.public_key(), service, NOW)
    return key, pem_of(leaf) + authority.certificate_pem


async def test_a_ticket_key_is_for_the_tenants_restore_process(
    made: Deployment, tmp_path: Path
) -> None:
    wrapped = await made.group(TENANT, A.group)
    key, chain_pem = restore_process(made)
    async with over_socket(made.keys, tmp_path / "s") as keys:
        door = await keys.seal_for_restore(wrapped, "c" * 32, RestoreProcess(chain_pem, "test"))
    ticket = Ticket(1, "c" * 32, TENANT, A.group, ["h"], "latest", "h", 1, 2, [door])
    assert open_group_key(ticket, [key]).wrapped == wrapped.wrapped
    assert read_log(made.directory / "log.jsonl")[-1]["act"] == "seal_for_restore"


@pytest.mark.invariant("I9")
async def test_no_other_process_gets_a_group_key(made: Deployment) -> None:
    """Not even one that the control plane names: the root has to vouch for it as that."""
    wrapped = await made.group(TENANT, A.group)
    other = "ten-01hq3v5k8m9n2p4r6s7t8w9x11.restore"
    ingest = server_name(TENANT, INGEST)
    stranger = make_node_authority(make_root(NOW), NOW)
    host = made.host(TENANT, "h").chain
    own = restore_process(made)[1]
    server = sign_server(made.root, [server_name(TENANT, RESTORE)], NOW).certificate_pem
    for chain_pem in (
        restore_process(made, other)[1],
        restore_process(made, ingest)[1],
        restore_process(made, by=stranger)[1],
        restore_process(made, by=make_intermediate(made.root, TENANT, NOW))[1],
        host,
        server + made.root.certificate_pem,
        "".join(reversed(_split(own))),
        _split(own)[0],
        "",
    ):
        with pytest.raises(KeyRefused):
            await made.keys.seal_for_restore(wrapped, "c" * 32, RestoreProcess(chain_pem, "test"))
    made.clock.at += timedelta(days=100)
    with pytest.raises(KeyRefused, match="not valid now"):
        await made.keys.seal_for_restore(wrapped, "c" * 32, RestoreProcess(own, "test"))


@pytest.mark.invariant("I9")
async def test_other_users_processes_are_not_answered(made: Deployment, tmp_path: Path) -> None:
    """The kernel says who calls; the socket's mode is only the first wall."""
    stranger = KeyServer(made.keys, frozenset({os.geteuid() + 1}))
    async with stranger.serve(tmp_path / "s"):
        assert not await SocketKeys(tmp_path / "s").is_up()
    async with over_socket(made.keys, tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


async def test_away_is_told_as_away(tmp_path: Path) -> None:
    with pytest.raises(KeyServiceAway) as caught:
        await SocketKeys(tmp_path / "none").make_tenant_key("acme")
    assert caught.value.retryable
    assert caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack("<I", 5) + b"[1,2]",
        struct.pack("<I", 14) + b'{"do":"health"}'[:14],
        struct.pack("<I", 20) + b'{"do":"no_such_verb"',
        struct.pack("<I", 2000) + b"[" * 2000,
        struct.pack("<I", 100) + b"short",
    ],
)
async def test_what_is_no_request_harms_nobody(
    made: Deployment, tmp_path: Path, data: bytes
) -> None:
    async with over_socket(made.keys, tmp_path / "s") as keys:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(tmp_path / "s"))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        answer = b""
        while piece := await asyncio.wait_for(loop.sock_recv(client, 4096), 30):
            answer += piece
        client.close()
        assert b"Traceback" not in answer
        assert await keys.is_up()


def _names(identity: Identity) -> tuple[str, str]:
    return identity.tenant, identity.host


def _split(chain_pem: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in chain_pem.split(end) if part.strip()]


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _as_authority(host: HostIdentity) -> Authority:
    assert isinstance(host.key, ec.EllipticCurvePrivateKey)
    return Authority(x509.load_pem_x509_certificates(host.chain.encode())[0], host.key)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data)
