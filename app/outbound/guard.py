"""A transport for URLs that a tenant chose.

A name is resolved once, every one of its addresses is checked, and the connection goes to an
address that was checked: a resolver that answers otherwise the next time changes nothing. Redirects
are not followed, answers have a limit, nothing of the environment (proxies) has a say.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import httpx2

from app.outbound.policy import (
    DEFAULT_PORTS,
    OutboundPolicy,
    OutboundRefused,
    Resolver,
    check_addresses,
    check_url,
    resolve,
)

#: Documents of a few KiB are what these calls are for.
ANSWER_BYTES_MAX = 256 * 1024


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
        told = check_url(str(request.url), self._policy)
        # The same reading of the URL from here on: what was checked is what is connected to.
        url = request.url
        found = await self._resolver(url.host, url.port or DEFAULT_PORTS[url.scheme])
        check_addresses(told, found, self._policy)
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
