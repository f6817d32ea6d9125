"""The control door: who is not let in, and that it is decided before a byte is read."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import create_engine, text

from app.certificates.authority import Authority, make_intermediate, make_root, pem_of, sign_host
from app.certificates.service import load_tenant_authority
from app.dsm.door import PROCESS_URI, NotAdmitted, is_process, uri_of
from app.dsm.process import DsmProcess
from app.dsm.twins import CALM_SECONDS, Twins
from app.kit.clock import SystemClock
from app.kit.ids import Kind, parse
from host_agent.wire.names import agent_san
from tests.app.service import Caller
from tests.servers.dsm import Site, door_of, running
from tests.servers.dsm_host import HostFiles, client_tls

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Two:
    """Two tenants' hosts, their files, and their authorities."""

    site: Site
    ids: tuple[tuple[str, str], tuple[str, str]]
    files: tuple[HostFiles, HostFiles]
    authorities: tuple[Authority, Authority]


async def _authority(site: Site, tenant: Caller) -> tuple[str, Authority]:
    tenant_id = (await tenant.get("/v1/tenant")).json()["id"]
    tools = site.service.tools
    async with tools.database.tenant(parse(Kind.TENANT, tenant_id)) as session:
        return tenant_id, await load_tenant_authority(session, tools.sealer)


@pytest.fixture
async def two(site: Site) -> Two:
    found = []
    for name in ("own", "other"):
        tenant = await site.service.make_tenant()
        host_id, files = await site.join(tenant, name)
        tenant_id, authority = await _authority(site, tenant)
        found.append(((tenant_id, host_id), files, authority))
    ids, files_of, authorities = zip(*found, strict=True)
    return Two(site, ids, files_of, authorities)


def _identity(folder: Path, authority: Authority, *uris: str) -> Path:
    """A leaf that this authority issued for these names, with its chain and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = authority.certificate.not_valid_before_utc.replace(microsecond=0)
    leaf = sign_host(authority, key.public_key(), uris[0], _now())
    if len(uris) > 1:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris])
        builder = x509.CertificateBuilder().subject_name(leaf.subject).issuer_name(leaf.issuer)
        builder = builder.public_key(key.public_key()).serial_number(7).not_valid_before(now)
        builder = builder.not_valid_after(leaf.not_valid_after_utc).add_extension(names, False)
        leaf = builder.sign(authority.key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = folder / f"{leaf.serial_number}.pem"
    file.write_bytes(pem_of(leaf).encode() + authority.certificate_pem.encode() + pem)
    return file


def _now() -> datetime:
    return SystemClock().now()


async def _answer(process: DsmProcess, tls: ssl.SSLContext) -> bytes:
    """What comes of asking for the door's path: nothing for whoever is not let in."""
    host, port = door_of(process)
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=tls, server_hostname="localhost"
            )
            writer.write(b"GET /v1/control HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await writer.drain()
            answer = await reader.read(100)
            writer.transport.abort()
            return answer
    except (ssl.SSLError, ConnectionError):
        return b""


async def test_only_a_leaf_of_the_tenant_that_its_name_claims_comes_in(
    two: Two, process: DsmProcess
) -> None:
    folder, root = two.site.folder, two.files[0].root
    (own_tenant, own_host), (other_tenant, other_host) = two.ids
    own, other = two.authorities
    known = agent_san(own_tenant, own_host)
    strangers = make_intermediate(make_root(_now()), own_tenant, _now())
    bad = {
        "a leaf of another deployment": _identity(folder, strangers, known),
        "another tenant's leaf with our name": _identity(folder, other, known),
        "our leaf with another tenant's name": _identity(
            folder, own, agent_san(other_tenant, other_host)
        ),
        "a host that there is not": _identity(
            folder, own, agent_san(own_tenant, own_host[:-2] + "zz")
        ),
        "another's host in our name": _identity(folder, own, agent_san(own_tenant, other_host)),
        "a key that never joined": _identity(folder, own, known),
        "two names": _identity(folder, own, known, agent_san(other_tenant, other_host)),
        "no name of a host": _identity(folder, own, "spiffe://holdfast/tenant/x"),
        "a process's name": _identity(folder, own, PROCESS_URI),
        "a leaf of the root itself": _identity(folder, two.site.service.tools.root, known),
    }
    for what, identity in bad.items():
        answer = await _answer(process, client_tls(HostFiles(identity, root)))
        assert answer == b"", what
    without = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    without.load_verify_locations(root)
    assert await _answer(process, without) == b"", "no certificate"
    # The door does answer whoever is let in, so that the silence above means something.
    good = await _answer(process, client_tls(two.files[0]))
    assert good.startswith(b"HTTP/1.1 "), good
    assert process.metrics.received._value.get() == 0


async def test_no_session_lets_anybody_in_again(two: Two, process: DsmProcess) -> None:
    tls = client_tls(two.files[0])
    host, port = door_of(process)

    def connect(session: ssl.SSLSession | None, context: ssl.SSLContext) -> ssl.SSLSession | None:
        with (
            socket.create_connection((host, port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as line,
        ):
            line.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 404")
            assert not line.session_reused
            return line.session

    session = await asyncio.to_thread(connect, None, tls)
    assert session is None or not session.has_ticket
    await asyncio.to_thread(connect, session, tls)


async def test_an_old_version_of_tls_is_refused(two: Two, process: DsmProcess) -> None:
    tls = client_tls(two.files[0])
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await _answer(process, tls) == b""


async def test_a_revoked_host_s_live_connection_ends_and_it_does_not_come_back(
    site: Site, process: DsmProcess
) -> None:
    tenant = await site.service.make_tenant()
    host_id, files = await site.join(tenant, "hypervisor")
    _, kept_files = await site.join(tenant, "kept")
    host, kept = site.host(files, door_of(process)), site.host(kept_files, door_of(process))
    async with running(host), running(kept):
        await host.until(lambda: bool(host.welcomes))
        await kept.until(lambda: bool(kept.welcomes))
        answer = await tenant.post(f"/v1/hosts/{host_id}:revoke")
        assert answer.status_code == 200, answer.text
        before = len(host.failures)
        await host.until(lambda: len(host.failures) >= before + 3, seconds=30)
        welcomes = len(host.welcomes)
        await host.until(lambda: len(host.failures) >= before + 5)
        assert len(host.welcomes) == welcomes
        await kept.until(lambda: kept.connection is not None)


async def test_one_identity_on_two_machines_is_told(site: Site, process: DsmProcess) -> None:
    """EN7: two that put each other out are an alert; the control, one that comes and goes, none."""
    tenant = await site.service.make_tenant()
    host_id, files = await site.join(tenant, "copied")
    _, other_files = await site.join(tenant, "restless")
    restless = site.host(other_files, door_of(process))

    async def alerts() -> list[str]:
        found = (await tenant.get("/v1/alerts")).json()["items"]
        return [one["subject"] for one in found if one["code"] == "host.identity_used_twice"]

    for number in range(1, 7):
        async with running(restless):
            await restless.until(lambda wanted=number: len(restless.welcomes) >= wanted)  # type: ignore[misc]
    one, two = (site.host(files, door_of(process)) for _ in range(2))
    async with running(one), running(two), asyncio.timeout(60):
        while not await alerts():
            await asyncio.sleep(0.2)
    assert await alerts() == [host_id]


def test_when_it_is_over_it_is_told_once() -> None:
    twins, key = Twins(), (UUID(int=1), UUID(int=2))
    assert [twins.replaced(key, float(at)) for at in range(6)] == [False] * 3 + [True] + [False] * 2
    assert twins.calm(100.0) == []
    assert twins.calm(5.0 + CALM_SECONDS + 1) == [key]
    assert twins.calm(10_000.0) == []
    slow = [twins.replaced(key, 20_000.0 + at * 60.0) for at in range(8)]
    assert not any(slow), "a line that breaks now and then"


async def test_a_suspended_tenant_s_hosts_go_and_do_not_come_in(
    two: Two, process: DsmProcess
) -> None:
    host = two.site.host(two.files[0], door_of(process))
    async with running(host):
        await host.until(lambda: bool(host.welcomes))
        _suspend(two)
        before = len(host.failures)
        await host.until(lambda: len(host.failures) >= before + 2)
        welcomes = len(host.welcomes)
        await host.until(lambda: len(host.failures) >= before + 4)
        assert len(host.welcomes) == welcomes
    assert await _answer(process, client_tls(two.files[0])) == b""
    assert await _answer(process, client_tls(two.files[1])) != b""


def _suspend(two: Two) -> None:
    engine = create_engine(two.site.service.url)
    with engine.begin() as connection:
        tenant_id = parse(Kind.TENANT, two.ids[0][0])
        connection.execute(
            text("UPDATE tenants SET state = 'suspended' WHERE id = :id"), {"id": tenant_id}
        )
    engine.dispose()


async def test_a_process_is_one_only_by_the_root_s_own_word(two: Two) -> None:
    site = two.site
    root = site.service.tools.root
    der = serialization.Encoding.DER
    made = x509.load_pem_x509_certificate((site.folder / "dsm.pem").read_bytes())
    assert is_process(made.public_bytes(der), root.certificate)
    forged = x509.load_pem_x509_certificate(
        _identity(site.folder, two.authorities[0], PROCESS_URI).read_bytes()
    )
    assert uri_of(forged) == PROCESS_URI
    assert not is_process(forged.public_bytes(der), root.certificate)
    host = x509.load_pem_x509_certificate(two.files[0].identity.read_bytes())
    assert not is_process(host.public_bytes(der), root.certificate)
    assert not is_process(None, root.certificate)
    with pytest.raises(NotAdmitted):
        uri_of(root.certificate)
