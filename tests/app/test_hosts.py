"""Hosts join once, renew by their key, are shut out at once; their certificates open one door."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from app.certificates.authority import key_pem_of, sign_server
from app.hosts.showing import health_of
from app.models import Host, HostStatus
from tests.app.joining import enrol, join_host, make_join_token, make_key, renewal, request_of
from tests.app.service import Caller, Service, running_service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at


async def test_a_host_joins_and_is_listed(service: Service) -> None:
    tenant = await service.make_tenant()
    token_id, token = await make_join_token(tenant, "hypervisor 1")
    answer = await enrol(tenant, token, request_of(make_key()))
    joined = answer.json()
    leaf, intermediate = x509.load_pem_x509_certificates(joined["certificate"].encode())
    leaf.verify_directly_issued_by(intermediate)
    root = x509.load_pem_x509_certificate(joined["root_certificate"].encode())
    intermediate.verify_directly_issued_by(root)
    assert joined["uri"].endswith(f"/tenant/{joined['tenant_id']}/agent/{joined['host_id']}")
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=24)
    listed = (await tenant.get("/v1/hosts")).json()["items"]
    assert [(host["name"], host["id"]) for host in listed] == [("hypervisor 1", joined["host_id"])]
    assert (await tenant.get(f"/v1/join-tokens/{token_id}")).json()["used_at"]


@pytest.mark.parametrize(
    ("state", "said", "age_seconds", "shown"),
    [
        ("active", None, 0, "unknown"),
        ("active", "up", 60, "up"),
        ("active", "degraded", 60, "degraded"),
        ("active", "up", 3600, "unknown"),  # who would say that it is down?
        ("active", "down", 3600, "down"),
        ("revoked", "up", 0, "unknown"),
    ],
)
def test_how_a_host_is_comes_from_its_manager_and_grows_old(
    state: str, said: str | None, age_seconds: float, shown: str
) -> None:
    now = datetime.now(UTC)
    seen_at = now - timedelta(seconds=age_seconds)
    status = None if said is None else HostStatus(health=said, seen_at=seen_at)
    assert health_of(Host(state=state), status, now) == shown


async def test_of_64_uses_of_a_token_at_once_one_counts(service: Service) -> None:
    tenant = await service.make_tenant()
    _, token = await make_join_token(tenant, "one")
    request = request_of(make_key())
    answers = await asyncio.gather(*(enrol(tenant, token, request) for _ in range(64)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 63
    assert len((await tenant.get("/v1/hosts")).json()["items"]) == 1


async def test_every_bad_token_has_the_same_answer(cluster: Cluster) -> None:
    clock = SetClock()
    with cluster.database() as url:
        async with running_service(url, clock) as service:
            tenant, other = await service.make_tenant(), await service.make_tenant()
            _, used = await make_join_token(tenant, "used")
            await enrol(tenant, used, request_of(make_key()))
            revoked_id, revoked = await make_join_token(tenant, "revoked")
            await tenant.post(f"/v1/join-tokens/{revoked_id}:revoke")
            _, expired = await make_join_token(tenant, "expired", lifetime_seconds=10)
            clock.at += timedelta(seconds=11)
            _, good = await make_join_token(tenant, "good")
            other_tenant = (other.token or "").split("_")[1]
            foreign = "_".join(["hfj", other_tenant, *good.split("_")[2:]])
            guessed = good[:-70] + ("1" if good[-70] == "0" else "0") + good[-69:]
            bad = [used, revoked, expired, foreign, guessed, good[:-1], ""]
            bad += [tenant.token or "", good.replace("hfj_", "hf_")]
            seen = set()
            for token in bad:
                answer = await enrol(tenant, token, request_of(make_key()))
                body = answer.json()
                body.pop("request_id")
                seen.add((answer.status_code, repr(body)))
            assert len(seen) == 1
            assert seen.pop()[0] == 401
            assert (await enrol(tenant, good, request_of(make_key()))).status_code == 201


def _hostile_requests() -> dict[str, str]:
    good = request_of(make_key())
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://holdfast/tenant/a/agent/b")]
    )
    lines = good.splitlines()
    changed = "\n".join([*lines[:2], lines[2][:-4] + "AAAA", *lines[3:]])
    return {
        "a small RSA key": request_of(rsa.generate_private_key(65537, 1024)),
        "a good RSA key": request_of(rsa.generate_private_key(65537, 2048)),
        "another curve": request_of(ec.generate_private_key(ec.SECP384R1())),
        "no PEM": "hello",
        "empty PEM": "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----",
        "a changed byte": changed,
        "a certificate": good.replace(" REQUEST", ""),
        "too large": request_of(make_key(), x509.UnrecognizedExtension(names.oid, bytes(9000))),
        "a nul": good[:60] + "\0" + good[60:],
    }


@pytest.mark.parametrize("name", list(_hostile_requests()))
async def test_a_bad_request_is_refused_and_its_token_stays(service: Service, name: str) -> None:
    tenant = await service.make_tenant()
    _, token = await make_join_token(tenant, "host")
    answer = await enrol(tenant, token, _hostile_requests()[name])
    assert (answer.status_code, answer.json()["code"]) == (422, "request_refused")
    assert (await enrol(tenant, token, request_of(make_key()))).status_code == 201


async def test_what_a_request_asks_for_besides_its_key_is_ignored(service: Service) -> None:
    tenant = await service.make_tenant()
    _, token = await make_join_token(tenant, "host")
    wanted = (
        x509.BasicConstraints(ca=True, path_length=5),
        x509.SubjectAlternativeName([x509.DNSName("api.example")]),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    answer = await enrol(tenant, token, request_of(make_key(), *wanted))
    leaf = x509.load_pem_x509_certificates(answer.json()["certificate"].encode())[0]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [answer.json()["uri"]]


async def test_an_ed25519_key_is_as_good(service: Service) -> None:
    tenant = await service.make_tenant()
    _, token = await make_join_token(tenant, "host")
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
    pem = request.public_bytes(serialization.Encoding.PEM).decode()
    assert (await enrol(tenant, token, pem)).status_code == 201


async def test_thirty_renewals_over_the_clock_and_one_in_the_grace(cluster: Cluster) -> None:
    clock = SetClock()
    with cluster.database() as url:
        async with running_service(url, clock) as service:
            tenant = await service.make_tenant()
            _, token = await make_join_token(tenant, "host")
            key = make_key()
            held = (await enrol(tenant, token, request_of(key))).json()
            for _ in range(30):
                clock.at += timedelta(hours=12)
                following = make_key()
                body = renewal(held["certificate"], key, request_of(following))
                answer = await service.nobody.post("/v1/renewals", body)
                assert answer.status_code == 201, answer.text
                assert answer.json()["host_id"] == held["host_id"]
                held, key = answer.json(), following
            clock.at += timedelta(days=7, hours=23)
            body = renewal(held["certificate"], key, request_of(make_key()))
            assert (await service.nobody.post("/v1/renewals", body)).status_code == 201
            clock.at += timedelta(days=9)
            assert (await service.nobody.post("/v1/renewals", body)).status_code == 401


async def test_a_renewal_whose_answer_was_lost_can_be_repeated(service: Service) -> None:
    tenant = await service.make_tenant()
    _, token = await make_join_token(tenant, "host")
    key = make_key()
    held = (await enrol(tenant, token, request_of(key))).json()
    for _ in range(2):
        body = renewal(held["certificate"], key, request_of(make_key()))
        assert (await service.nobody.post("/v1/renewals", body)).status_code == 201


async def test_only_the_host_s_own_key_renews(service: Service) -> None:
    tenant, other = await service.make_tenant(), await service.make_tenant()
    keys, held = [], []
    for who in (tenant, other):
        _, token = await make_join_token(who, "host")
        keys.append(make_key())
        held.append((await enrol(who, token, request_of(keys[-1]))).json())
    own, request = held[0]["certificate"], request_of(make_key())
    swapped = renewal(own, keys[0], request) | {"certificate_request": request_of(make_key())}
    wrong = [
        renewal(own, keys[1], request),
        renewal(held[1]["certificate"], keys[0], request),
        swapped,
        renewal(held[0]["root_certificate"], keys[0], request),
        renewal(own, keys[0], request) | {"signature": "AAAA"},
        renewal(own, keys[0], request) | {"certificate": "x"},
    ]
    for body in wrong:
        assert (await service.nobody.post("/v1/renewals", body)).status_code == 401
    await tenant.post(f"/v1/hosts/{held[0]['host_id']}:revoke")
    good = renewal(own, keys[0], request)
    assert (await service.nobody.post("/v1/renewals", good)).status_code == 401


async def test_a_revoked_host_s_name_is_kept_and_the_act_is_in_the_log(service: Service) -> None:
    tenant = await service.make_tenant()
    host_id, _ = await join_host(tenant, "host")
    for _ in range(2):
        answer = await tenant.post(f"/v1/hosts/{host_id}:revoke")
        assert answer.json()["state"] == "revoked"
    kinds = [event["kind"] for event in (await tenant.get("/v1/events")).json()["items"]]
    assert kinds.count("hosts.revoked") == 1


async def test_a_tenant_s_door_opens_to_its_own_hosts_alone(
    service: Service, tmp_path: Path
) -> None:
    own, other = await service.make_tenant(), await service.make_tenant()
    files = {
        name: await _files(who, tmp_path / name) for name, who in (("own", own), ("other", other))
    }
    server = sign_server(service.tools.root, ["localhost"], service.tools.clock.now())
    (tmp_path / "server.pem").write_text(server.certificate_pem)
    (tmp_path / "server.key").write_bytes(server.key_pem)
    trusted = files["own"]["intermediate"]
    assert _knock(tmp_path, trusted, files["own"]["leaf"]) == b"in"
    for leaf in (files["other"]["leaf"], None):
        assert _knock(tmp_path, trusted, leaf) == b""


async def _files(tenant: Caller, folder: Path) -> dict[str, Path]:
    """A joined host's identity as files; its leaf is sent without the intermediate."""
    folder.mkdir()
    key = make_key()
    _, token = await make_join_token(tenant, folder.name)
    joined = (await enrol(tenant, token, request_of(key))).json()
    leaf, intermediate = x509.load_pem_x509_certificates(joined["certificate"].encode())
    pem = serialization.Encoding.PEM
    (folder / "leaf.pem").write_bytes(leaf.public_bytes(pem) + key_pem_of(key))
    (folder / "intermediate.pem").write_bytes(intermediate.public_bytes(pem))
    (folder / "root.pem").write_text(joined["root_certificate"])
    return {"leaf": folder / "leaf.pem", "intermediate": folder / "intermediate.pem"}


def _knock(folder: Path, trusted: Path, leaf: Path | None) -> bytes:
    """What a server that trusts one intermediate reads from a client that shows `leaf`."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(trusted)
        connected, _ = listener.accept()
        connected.settimeout(5)
        try:
            with context.wrap_socket(connected, server_side=True) as door:
                heard.append(door.recv(100))
        except OSError:
            heard.append(b"")
        finally:
            connected.close()

    thread = threading.Thread(target=serve)
    thread.start()
    context = ssl.create_default_context(cafile=folder / "own" / "root.pem")
    if leaf is not None:
        context.load_cert_chain(leaf)
    raw = socket.create_connection(listener.getsockname()[:2])
    try:
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"in")
            client.settimeout(5)
            client.recv(1)
    except OSError:
        raw.close()
    thread.join(10)
    listener.close()
    return heard[0]
