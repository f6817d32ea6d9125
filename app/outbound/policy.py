"""Which URLs of a tenant's may be called, and which addresses they may lead to.

What is costly to load is only in `guard`, for who really calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from socket import SOCK_STREAM
from urllib.parse import SplitResult, urlsplit

from app.outbound.addresses import is_loopback, is_public, parse_address
from host_agent.wire.errors import HoldfastError

#: For names, connections and each wait for bytes.
STEP_SECONDS_MAX = 5.0
PORTS = (443, 8443)
DEFAULT_PORTS = {"https": 443, "http": 80}
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
            found = await loop.getaddrinfo(host, port, type=SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        raise OutboundRefused(f"The name {host!r} has no address.") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_url(text: str, policy: OutboundPolicy) -> SplitResult:
    """The URL, if it may be called at all; OutboundRefused."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise OutboundRefused("It is not a URL.") from None
    if not url.hostname or "@" in url.netloc or url.fragment:
        raise OutboundRefused("The URL has no host, or a user name, or a fragment.")
    if url.scheme == "https":
        if (port or 443) not in PORTS and not policy.permits_loopback:
            raise OutboundRefused(f"Only the ports {PORTS[0]} and {PORTS[1]} are called.")
    elif url.scheme != "http" or not policy.permits_loopback:
        raise OutboundRefused("Only https is called.")
    return url


def check_addresses(url: SplitResult, found: Sequence[str], policy: OutboundPolicy) -> None:
    """OutboundRefused unless every one of a name's addresses may be connected to."""
    for text in found:
        address = parse_address(text)
        is_here = address is not None and policy.permits_loopback and is_loopback(address)
        is_fine = address is not None and url.scheme == "https" and is_public(address)
        if not (is_here or is_fine):
            raise OutboundRefused(f"{url.hostname} leads to an address that is not public.")
    if not found:
        raise OutboundRefused(f"The name {url.hostname!r} has no address.")
