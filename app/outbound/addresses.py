"""Which addresses a tenant's URL may lead to: the public unicast ones of a table of our own. Pure.

Python's own `is_global` is true for multicast, NAT64, 6to4 and the metadata address of one cloud.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_DENIED_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # behind carriers
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's own service, on a public address
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
#: Within it alone is unicast handed out; what of it is not is below.
_UNICAST_6 = IPv6Network("2000::/3")
_DENIED_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # Teredo, ORCHID, benchmarks
            "2001:db8::/32",
            "2002::/16",  # 6to4: whose relay it is, nobody knows
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
#: An IPv4 address in the last 32 bits: it is that one which is reached.
_CARRIES_4 = tuple(map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96")))


def is_public(address: Address) -> bool:
    """Whether it is a public unicast address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _DENIED_4)
    if any(address in network for network in _CARRIES_4):
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _UNICAST_6 and not any(address in network for network in _DENIED_6)


def is_loopback(address: Address) -> bool:
    """Whether it is this machine, said plainly."""
    return address == IPv6Address("::1") or (
        isinstance(address, IPv4Address) and address in IPv4Network("127.0.0.0/8")
    )


def parse_address(text: str) -> Address | None:
    """An address as a resolver gives it; None for one with a zone, which is never public."""
    try:
        return ip_address(text)
    except ValueError:
        return None
