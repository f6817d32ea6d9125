"""Sockets that a test opened, closed with the test whatever became of it."""

from __future__ import annotations

import socket

_open: list[socket.socket] = []


def track(made: socket.socket) -> socket.socket:
    """Remember it."""
    _open.append(made)
    return made


def close_all() -> None:
    """Close what was remembered."""
    while _open:
        _open.pop().close()
