"""What a manager holds of a connected host, wherever its connection ends."""

from __future__ import annotations

from typing import Protocol

from app.dsm.door import Peer
from host_agent.wire.control import Hello


class Link(Protocol):
    """A host's connection."""

    @property
    def peer(self) -> Peer:
        """Whose."""
        ...

    @property
    def hello(self) -> Hello:
        """What it said first."""
        ...

    def send(self, text: str) -> None:
        """Queue a message. A host that does not read is dropped."""
        ...

    def drop(self, reason: str) -> None:
        """End the connection."""
        ...


class Owner(Protocol):
    """Who manages a host, in this process or behind a relay. Calls return at once."""

    def joined(self, link: Link) -> None:
        """A host is connected, or has this owner from now on."""
        ...

    def said(self, link: Link, text: str) -> None:
        """It sent a message."""
        ...

    def left(self, link: Link) -> None:
        """It is gone, or has another owner."""
        ...
