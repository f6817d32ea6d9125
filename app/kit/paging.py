"""Pages of a list by key: the cursor says after which row the next page begins.

A cursor is signed, so that it is only what this service gave out, and names the list that it is
of, so that it fits no other.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass
from typing import Any

from app.kit.problems import Problem
from app.kit.sealing import Sealer

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
_MAC_BYTES = 16


@dataclass(frozen=True)
class PageQuery:
    """Which page is wanted."""

    limit: int = LIMIT_DEFAULT
    cursor: str | None = None


def write_cursor(sealer: Sealer, listed: str, position: list[Any]) -> str:
    """The cursor after `position` of the list named `listed`."""
    body = json.dumps(position, separators=(",", ":")).encode()
    mac = sealer.fingerprint("cursor", listed, body.decode())[:_MAC_BYTES]
    return base64.urlsafe_b64encode(mac + body).rstrip(b"=").decode()


def read_cursor(sealer: Sealer, listed: str, cursor: str) -> list[Any]:
    """The position of a cursor of this list; Problem `cursor_invalid`."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        body = raw[_MAC_BYTES:].decode()
    except (binascii.Error, ValueError):
        raise _invalid() from None
    expected = sealer.fingerprint("cursor", listed, body)[:_MAC_BYTES]
    if not hmac.compare_digest(expected, raw[:_MAC_BYTES]):
        raise _invalid()
    position: list[Any] = json.loads(body)
    return position


def _invalid() -> Problem:
    return Problem("cursor_invalid", hint="Begin the list anew without a cursor.")
