"""A transport for URLs that a tenant chose.

A name is resolved once, every one of its addresses is checked, and the connection goes to an
address that was checked: a resolver that answers otherwise the next time changes nothing. Redirects
are not followed, answers have a limit, nothing of the environment (proxies) has a say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx2

from app.outbound.addresses import is_loopback, is_public, parse_address
from host_agent.wire.errors import HoldfastError

#: For names, connections and each wait for bytes.
STEP_SECONDS_MAX = 5.0
#: Documents of a few KiB are what these calls are for.
ANSWER_BYTES_MAX = 256 * 1024
_PORTS = (443, 8443)
_DEFAULT_PORTS = {"https": 443, "http": 80}
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class OutboundRefused(HoldfastError):
    """The URL, or where it leads, is not for us to call."""

    code = "outbound_refused"


@dataclass(frozen=True)
class OutboundPolicy:
    """`permits_loopback`: this machine too, also without TLS. For trials on one machine."""

    permits_loopback: bool = False


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name; OutboundRefused."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(STEP_SECONDS_MAX):
            found = await loop.getaddrinfo(host, port, type=1)  # SOCK_STREAM
    except (OSError, UnicodeError, TimeoutError):
        raise OutboundRefused(f"The name {host!r} has no address.") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_url(text: str, policy: OutboundPolicy) -> httpx2.URL:
    """The URL, if it may be called at all; OutboundRefused."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        raise OutboundRefused("It is not a URL.") from None
    if not url.host or url.userinfo or url.fragment:
        raise OutboundRefused("The URL has no host, or a user name, or a fragment.")
    if url.scheme == "https":
        port = url.port or 443
        if port not in _PORTS and not policy.permits_loopback:
            raise OutboundRefused(f"Only the ports {_PORTS[0]} and {_PORTS[1]} are called.")
    elif url.scheme != "http" or not policy.permits_loopback:
        raise OutboundRefused("Only https is called.")
    return url


def check_addresses(url: httpx2.URL, found: Sequence[str], policy: OutboundPolicy) -> None:
    """OutboundRefused unless every one of a name's addresses may be connected to."""
    for text in found:
        address = parse_address(text)
        is_here = address is not None and policy.permits_loopback and is_loopback(address)
        is_fine = address is not None and url.scheme == "https" and is_public(address)
        if not (is_here or is_fine):
            raise OutboundRefused(f"{url.host} leads to an address that is not public.")
    if not found:
        raise OutboundRefused(f"The name {url.host!r} has no address.")


class _Limited(httpx2.AsyncByteStream):
    """An answer's bytes, up to a limit."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async for chunk in self._inner:
            taken += len(chunk)
            if taken > ANSWER_BYTES_MAX:
                raise OutboundRefused(f"The answer has over {ANSWER_BYTES_MAX // 1024} KiB.")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to checked addresses alone; every request is checked anew."""

    def __init__(self, policy: OutboundPolicy, resolver: Resolver = resolve) -> None:
        self._policy, self._resolver = policy, resolver
        self._inner = httpx2.AsyncHTTPTransport(
            verify=ssl.create_default_context(), trust_env=False, retries=0
        )

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = check_url(str(request.url), self._policy)
        port = url.port or _DEFAULT_PORTS[url.scheme]
        found = await self._resolver(url.host, port)
        check_addresses(url, found, self._policy)
        request.headers["accept-encoding"] = "identity"
        for place, address in enumerate(found, 1):
            try:
                return await self._send(request, url, address)
            except httpx2.ConnectError:
                if place == len(found):
                    raise
        raise AssertionError

    async def _send(
        self, request: httpx2.Request, url: httpx2.URL, address: str
    ) -> httpx2.Response:
        # The Host header was made from the URL before; the name is also what TLS proves.
        sent = httpx2.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": url.host},
        )
        answer = await self._inner.handle_async_request(sent)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise OutboundRefused("The answer is compressed, which was not asked for.")
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        return httpx2.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_Limited(answer.stream),
            extensions=answer.extensions,
        )
