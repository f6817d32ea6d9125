"""What every test lives with: no network beyond this machine."""

from __future__ import annotations

import ipaddress
import sys
from typing import Any


class NetworkForbidden(RuntimeError):
    """A test tried to reach another machine."""


def _is_local(host: str) -> bool:
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_other_machines(event: str, args: tuple[Any, ...]) -> None:
    if event not in {"socket.connect", "socket.sendto"}:
        return
    address = args[1]
    if isinstance(address, tuple) and not _is_local(str(address[0])):
        raise NetworkForbidden(f"tests talk to this machine only, not to {address}")


# An audit hook sees every connection of the process, whatever library opens it.
sys.addaudithook(_refuse_other_machines)
