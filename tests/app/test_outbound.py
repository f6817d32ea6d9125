"""URLs that a tenant chose: only https, only to public addresses, only to what was checked."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import httpx2
import pytest

from app.outbound import policy
from app.outbound.addresses import is_loopback, is_public
from app.outbound.guard import ANSWER_BYTES_MAX, GuardedTransport
from app.outbound.policy import OutboundPolicy, OutboundRefused, check_url, resolve
from tests.servers.signing_issuer import SigningIssuer, running_issuer

pytestmark = pytest.mark.anyio
PUBLIC = ["1.1.1.1", "8.8.8.8", "193.0.6.139", "2606:4700::1111", "2a00:1450:4001::200e"]
PUBLIC += ["::ffff:8.8.8.8", "64:ff9b::808:808"]
_NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.1.2.3
168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1
192.0.0.8 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255
198.51.100.1 203.0.113.1 224.0.0.1 224.0.0.251 239.255.255.250 240.0.0.1 255.255.255.255
:: ::1 ::7f00:1 ::127.0.0.1 ::a9fe:a9fe ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:10.0.0.1
::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::a00:1 64:ff9b:1::1 100::1
2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1
2002:a9fe:a9fe::1 2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1
ff00::1 ff02::1 ff05::1:3 2620:4f:8000::1
"""
DENIED = _NOT_PUBLIC.split()
#: What resolvers make of spellings: each has to lead to a refusal.
SPELLINGS = ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost", "[::1]"]
SPELLINGS += ["[::ffff:127.0.0.1]", "169.254.169.254", "[fe80::1]", "１２７.0.0.1", "127.0.0.1."]


def test_public_addresses_are_told_from_all_others() -> None:
    assert [text for text in PUBLIC if not is_public(ip_address(text))] == []
    assert [text for text in DENIED if is_public(ip_address(text))] == []
    here = [text for text in DENIED if is_loopback(ip_address(text))]
    assert here == ["127.0.0.1", "127.1.2.3", "::1"]


def test_python_s_own_answer_would_not_do() -> None:
    assert [text for text in DENIED if ip_address(text).is_global], "the table is not needed"


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/",
        "ftp://login.example.com/",
        "file:///etc/passwd",
        "gopher://login.example.com/",
        "https://user@login.example.com/",
        "https://user:password@login.example.com/",
        "https://login.example.com/#fragment",
        "https://login.example.com:22/",
        "https://login.example.com:6379/",
        "https://",
        "https:///path",
        "login.example.com",
        "//login.example.com",
        "",
    ],
)
def test_urls_that_are_never_called(url: str) -> None:
    with pytest.raises(OutboundRefused):
        check_url(url, OutboundPolicy())


@contextmanager
def listening(address: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[int, list[object]]]:
    """A port that notes who connects."""
    seen: list[object] = []
    with socket.create_server((address, port)) as server:
        server.settimeout(0.05)
        ends = threading.Event()

        def accept() -> None:
            while not ends.is_set():
                try:
                    connection, peer = server.accept()
                except TimeoutError:
                    continue
                seen.append(peer)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            ends.set()
            thread.join()


async def get(transport: GuardedTransport, url: str) -> httpx2.Response:
    async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=5) as client:
        return await client.get(url)


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_leads_to_this_machine(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as (port, seen):
        monkeypatch.setattr(policy, "PORTS", (port, port))
        with pytest.raises((OutboundRefused, httpx2.InvalidURL, httpx2.UnsupportedProtocol)):
            await get(GuardedTransport(OutboundPolicy()), f"https://{spelling}:{port}/")
        await asyncio.sleep(0.1)
        assert seen == []


async def test_without_the_table_the_same_call_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (port, seen):
        monkeypatch.setattr(policy, "PORTS", (port, port))
        monkeypatch.setattr(policy, "is_public", lambda _: True)
        with pytest.raises(httpx2.HTTPError):
            await get(GuardedTransport(OutboundPolicy()), f"https://127.0.0.1:{port}/")
        await asyncio.sleep(0.1)
        assert len(seen) == 1


async def test_one_address_that_is_not_public_is_enough_to_refuse() -> None:
    async def both(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.1"]

    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(OutboundPolicy(), both), "https://login.example.com/")


async def test_a_resolver_that_changes_its_mind_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rebinding: public when it is checked, this machine when it would be connected to."""
    connected: list[tuple[str, int]] = []

    async def connect(self: object, host: str, port: int, **_: object) -> object:
        connected.append((host, port))
        raise httpx2.ConnectError("not in a test")

    monkeypatch.setattr("httpcore2._backends.auto.AutoBackend.connect_tcp", connect)
    answers = iter([["203.0.114.7"], ["127.0.0.1"]])

    async def rebinding(_host: str, _port: int) -> list[str]:
        return next(answers)

    transport = GuardedTransport(OutboundPolicy(), rebinding)
    with pytest.raises(httpx2.ConnectError):
        await get(transport, "https://login.example.com/")
    assert connected == [("203.0.114.7", 443)]
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(OutboundPolicy(), rebinding), "https://login.example.com/")
    assert len(connected) == 1


@pytest.fixture
def issuer() -> Iterator[SigningIssuer]:
    with running_issuer() as running:
        yield running


HERE = OutboundPolicy(permits_loopback=True)


async def test_a_trial_on_one_machine_reaches_it_and_nothing_else(issuer: SigningIssuer) -> None:
    assert (await get(GuardedTransport(HERE), f"{issuer.url}/jwks")).status_code == 200
    by_name = issuer.url.replace("127.0.0.1", "localhost")
    assert (await get(GuardedTransport(HERE), f"{by_name}/jwks")).status_code == 200

    async def outside(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8"]

    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(HERE, outside), "http://login.example.com/")
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(HERE), "https://10.0.0.1/")
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(OutboundPolicy()), f"{issuer.url}/jwks")


async def test_redirects_are_not_followed(issuer: SigningIssuer) -> None:
    with listening() as (port, seen):
        issuer.answer = (302, {"location": f"http://127.0.0.1:{port}/"}, b"")
        assert (await get(GuardedTransport(HERE), f"{issuer.url}/")).status_code == 302
        await asyncio.sleep(0.1)
        assert seen == []


async def test_answers_have_a_limit_and_are_not_unpacked(issuer: SigningIssuer) -> None:
    issuer.answer = (200, {}, b"x" * ANSWER_BYTES_MAX)
    assert len((await get(GuardedTransport(HERE), issuer.url)).content) == ANSWER_BYTES_MAX
    issuer.answer = (200, {}, b"x" * (20 << 20))
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(HERE), issuer.url)
    issuer.answer = (200, {"content-encoding": "gzip"}, b"")
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(HERE), issuer.url)


async def test_a_name_without_an_address_is_said_to_have_none() -> None:
    with pytest.raises(OutboundRefused):
        await resolve("nobody.invalid", 443)
    with pytest.raises(OutboundRefused):
        await get(GuardedTransport(OutboundPolicy()), "https://nobody.invalid/")
