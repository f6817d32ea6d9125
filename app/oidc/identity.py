"""Whom an issuer vouches for, and what a token is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


class BadIdToken(Exception):
    """What is wrong with it. For the audit log; whoever logs in is not told."""


class UnknownKey(BadIdToken):
    """It names a key that the issuer did not publish, when its keys were last read."""


@dataclass(frozen=True)
class Expected:
    """What the token of one login has to say."""

    issuer: str
    client_id: str
    nonce: str
    now: datetime


@dataclass(frozen=True)
class Identity:
    """Whom the issuer vouches for. `authenticated_at`: when they proved it, if it says so."""

    issuer: str
    subject: str
    claims: dict[str, Any]
    authenticated_at: datetime | None
