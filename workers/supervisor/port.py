"""What a tenant's process runs: one service, which is given sockets that nobody has read from.

A module with `async def open_service(start: ServiceStart) -> Service` is a service. It runs in a
process that serves this one tenant and that has never seen anything of another.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from host_agent.wire.serving import ServingRecord
from workers.ingest.log import Log
from workers.ingest.tls import ServerIdentity


@dataclass(frozen=True)
class ServiceStart:
    """What a service begins with."""

    record: ServingRecord
    identity: ServerIdentity
    log: Log
    is_store_probed: bool = False


class Service(Protocol):
    """One tenant's ingest or restore. Everything is called on its process's event loop."""

    def take(self, connected: socket.socket, address: str) -> None:
        """Serve a connection, from its TLS handshake on."""
        ...

    def change(self, record: ServingRecord) -> None:
        """A newer record holds from now on, for connections that are there as well."""
        ...

    def renew(self, identity: ServerIdentity) -> None:
        """A newer certificate, for connections to come."""
        ...

    def status(self) -> dict[str, object]:
        """What it is doing, for `status`; JSON."""
        ...

    def facts(self) -> list[dict[str, object]]:
        """What the manager is told of its streams; JSON."""
        ...

    async def stop(self) -> None:
        """Take nobody new, finish what was begun, within 5 s."""
        ...


OpenService = Callable[[ServiceStart], Awaitable[Service]]
