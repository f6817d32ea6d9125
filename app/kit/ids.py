"""Identifiers as users see them: a prefix that names the kind, then 26 letters and digits.

The prefix makes a mistaken paste visible. Behind it is a UUID of version 7 (RFC 9562): ordered by
time, so that new rows stay together in an index and a list by id is a list by age.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from enum import StrEnum
from uuid import UUID

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_LETTERS = 26


class Kind(StrEnum):
    """The prefixes."""

    TENANT = "ten"
    USER = "usr"
    SESSION = "ses"
    API_KEY = "key"
    SITE = "site"
    HOST = "host"
    JOIN_TOKEN = "join"  # noqa: S105 - a prefix
    EVENT = "evt"
    PROVIDER_KEY = "pky"
    PROVIDER_ENTRY = "entry"
    REQUEST = "req"
    DATA_NODE = "node"
    JOURNAL_STORE = "store"
    OPERATION = "op"
    MACHINE = "mach"
    DISK = "disk"
    VPG = "vpg"
    PLAN = "plan"
    CHECKPOINT = "ckp"
    SERVICE_PROFILE = "prof"
    ALERT = "alr"
    JOB = "job"
    POOL = "pool"
    PLACEMENT = "plc"


class BadId(ValueError):
    """Not an identifier of the kind that was wanted."""


def new_uuid(now: datetime) -> UUID:
    """A UUID of version 7 for this instant."""
    milliseconds = int(now.timestamp() * 1000) & ((1 << 48) - 1)
    value = milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64
    return UUID(int=value | 0b10 << 62 | secrets.randbits(62))


def encode(value: UUID) -> str:
    """The 26 letters of a UUID."""
    number, letters = value.int, []
    for _ in range(_LETTERS):
        letters.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(letters))


def decode(letters: str) -> UUID:
    """The UUID of 26 letters; BadId."""
    if len(letters) != _LETTERS or letters[0] not in "01234567":
        raise BadId("An identifier has 26 letters.")
    number = 0
    for letter in letters:
        if letter not in _VALUES:
            raise BadId("An identifier has no such letter.")
        number = number << 5 | _VALUES[letter]
    return UUID(int=number)


def show(kind: Kind, value: UUID) -> str:
    """An identifier as users see it."""
    return f"{kind}_{encode(value)}"


def parse(kind: Kind, text: str) -> UUID:
    """The UUID of an identifier of this kind; BadId."""
    prefix, _, letters = text.partition("_")
    if prefix != kind:
        raise BadId(f"An identifier of this kind begins with {kind}_.")
    return decode(letters)
