"""The way to a door: straight, or through a proxy that the environment names."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

import pytest

from host_agent.stream import tunnel
from host_agent.stream.tunnel import Proxy, ProxyRefused, open_tcp, proxy_for
from tests.stream.harness import in_loop


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_used"),
    [
        ("door.example", "", True),
        ("door.example", "*", False),
        ("door.example", "example", False),
        ("door.example", ".example,other", False),
        ("door.example", "xample oor.example", True),
        ("10.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.2.0.0/16", True),
        ("localhost", "", False),
        ("127.0.0.9", "", False),
        ("::1", "", False),
    ],
)
def test_who_is_reached_through_the_proxy(host: str, no_proxy: str, is_used: bool) -> None:
    environment = {"HTTPS_PROXY": "http://proxy:8080", "NO_PROXY": no_proxy}
    assert proxy_for(host, environment) == (Proxy("proxy", 8080) if is_used else None)


def test_the_name_and_password_of_a_proxy() -> None:
    found = proxy_for("door", {"https_proxy": "http://me:p%40ss@proxy:1"})
    assert found is not None
    assert found.authorization == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert "p@ss" not in found.shown
    assert proxy_for("door", {}) is None


@pytest.mark.parametrize("url", ["socks5://p:1", "http://", "http://p:99999", "http://p:x"])
def test_a_proxy_that_is_named_wrongly(url: str) -> None:
    with pytest.raises(ProxyRefused):
        proxy_for("door", {"HTTPS_PROXY": url})


@contextlib.asynccontextmanager
async def proxy(says: bytes, heard: list[bytes]) -> AsyncIterator[int]:
    """Answers the first request with `says`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.clear()
        with contextlib.suppress(ConnectionError):
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(says)
            if not says:
                writer.write_eof()
            await writer.drain()
            heard.append(await reader.read(16))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    over = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await over.wait()


@in_loop
async def test_what_follows_the_answer_is_the_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    async with proxy(b"HTTP/1.1 200 fine\r\nx: y\r\n\r\nfirst bytes", heard) as port:
        environment = {"HTTPS_PROXY": f"http://a:b@127.0.0.1:{port}"}
        monkeypatch.setattr(tunnel, "proxy_for", lambda host: proxy_for(host, environment))
        raw = await open_tcp(("door.example", 443))
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(raw, 100) == b"first bytes"
        await loop.sock_sendall(raw, b"hello")
        raw.close()
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert heard[0].startswith(b"CONNECT door.example:443 HTTP/1.1\r\nHost: door.example:443\r\n")
    assert b"Proxy-Authorization: Basic YTpi\r\n" in heard[0]
    assert heard[1] == b"hello"


@in_loop
@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 407 give me a password\r\n\r\n", b"", b"SSH-2.0\r\n\r\n", b"x" * 20_000]
)
async def test_a_proxy_that_does_not_connect(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(says, []) as port:
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}
        monkeypatch.setattr(tunnel, "proxy_for", lambda host: proxy_for(host, environment))
        with pytest.raises(ProxyRefused) as caught:
            await open_tcp(("door.example", 443))
        if says.startswith(b"HTTP"):
            assert "407 give me a password" in str(caught.value)
