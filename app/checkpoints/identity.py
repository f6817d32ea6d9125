"""The identifier of an automatic checkpoint, made from its group and its time. Pure.

It is not stored: a packed checkpoint's is made again from what is. Its first 48 bits are the time,
so an identifier leads to the one pack that can hold it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from uuid import UUID

_CONTEXT = b"holdfast checkpoint v1\0"


def milliseconds(moment: datetime) -> int:
    """A moment as milliseconds since 1970, rounded down."""
    return int(moment.timestamp() * 1_000_000 + 0.5) // 1000


def moment_of(stamp: int) -> datetime:
    """The moment of milliseconds since 1970, exactly."""
    seconds, rest = divmod(stamp, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def checkpoint_id(vpg_id: UUID, expected_ms: int) -> UUID:
    """The identifier of the group's automatic checkpoint that was expected at this millisecond."""
    digest = hashlib.sha256(_CONTEXT + vpg_id.bytes + expected_ms.to_bytes(8, "big")).digest()
    high, low = int.from_bytes(digest[:2], "big"), int.from_bytes(digest[2:10], "big")
    value = (expected_ms & ((1 << 48) - 1)) << 80 | 7 << 76 | (high & 0xFFF) << 64
    return UUID(int=value | 0b10 << 62 | low & ((1 << 62) - 1))


def expected_of(identifier: UUID) -> int:
    """The millisecond that an identifier states; whether it is one is for `checkpoint_id`."""
    return identifier.int >> 80
