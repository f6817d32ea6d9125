"""Plain TCP to a door, through an HTTP proxy where the environment names one.

HTTPS_PROXY (or in lower case) is `http://[NAME:PASSWORD@]HOST:PORT`; NO_PROXY lists hosts, and
suffixes with a leading dot, that are reached directly. The proxy sees a name and TLS, nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

#: What a proxy says before the connection is ours; a page with an error may follow.
_ANSWER_BYTES_MAX = 16 * 1024


class ProxyRefused(OSError):
    """The proxy did not connect us; the text says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. `authorization`: the value of its header, or None."""

    host: str
    port: int
    authorization: str | None = None

    @property
    def shown(self) -> str:
        """Without its password."""
        return f"{self.host}:{self.port}"


def proxy_for(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy by which to reach a host, or None; ProxyRefused if it is named wrongly."""
    url = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
    skipped = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not url or _is_skipped(host.lower(), skipped):
        return None
    place = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = place.port or 3128
    except ValueError:
        port = 0
    if place.scheme != "http" or not place.hostname or not port:
        raise ProxyRefused("HTTPS_PROXY is not of the form http://HOST:PORT")
    secret = None
    if place.username is not None:
        plain = f"{unquote(place.username)}:{unquote(place.password or '')}"
        secret = "Basic " + base64.b64encode(plain.encode()).decode()
    return Proxy(place.hostname, port, secret)


def _is_skipped(host: str, skipped: str) -> bool:
    # Another machine's proxy could only reach itself by these.
    if host == "localhost" or _is_inside(host, "127.0.0.0/8") or host == "::1":
        return True
    for word in skipped.lower().replace(",", " ").split():
        name = word.lstrip(".")
        if word == "*" or host == name or host.endswith(f".{name}"):
            return True
        if "/" in word and _is_inside(host, word):
            return True
    return False


def _is_inside(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


async def open_tcp(address: tuple[str, int]) -> socket.socket:
    """A non-blocking socket to the address, through the proxy if there is one; OSError."""
    proxy = proxy_for(address[0])
    if proxy is None:
        return await _connect(address)
    raw = await _connect((proxy.host, proxy.port))
    try:
        await _ask(raw, proxy, address)
    except BaseException:
        raw.close()
        raise
    return raw


async def _connect(address: tuple[str, int]) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError = OSError("the name has no address")
    for family, kind, proto, _, place in await loop.getaddrinfo(*address, type=socket.SOCK_STREAM):
        raw = socket.socket(family, kind, proto)
        raw.setblocking(False)
        try:
            await loop.sock_connect(raw, place)
        except OSError as error:
            raw.close()
            failure = error
        except asyncio.CancelledError:
            raw.close()
            raise
        else:
            return raw
    raise failure


async def _ask(raw: socket.socket, proxy: Proxy, address: tuple[str, int]) -> None:
    """CONNECT, and read the answer byte by byte: what follows it belongs to TLS."""
    loop = asyncio.get_running_loop()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    place = f"{host}:{address[1]}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    await loop.sock_sendall(raw, ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
    answer = bytearray()
    while not answer.endswith(b"\r\n\r\n"):
        part = await loop.sock_recv(raw, 1)
        answer += part
        if not part or len(answer) > _ANSWER_BYTES_MAX:
            raise ProxyRefused(f"the proxy {proxy.shown} answered in no HTTP")
    status = bytes(answer.split(b"\r\n", 1)[0]).decode("latin-1").split(" ", 2)
    if len(status) < 2 or not status[0].startswith("HTTP/1.") or status[1] != "200":
        said = " ".join(word for word in status[1:] if word.isprintable())[:80]
        raise ProxyRefused(f"the proxy {proxy.shown} refused the way to {place}: {said}")
